"""The options of the scripts; quick to import, so that --help and mistakes are answered before the slow libraries load.

In:  the docstring of a script, which becomes its help, and the words of the command line.
Out: the values of its options.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from data.files import find_beside_scripts

VERSION = "1.0.0"
DATA = "data/sample"
WEIGHTS = "weights/unet.keras"
CONTACT_SHEET = "data/contact_sheet.png"
FIGURE = "Unet.png"
EXPORTS = {"onnx": "unet.onnx", "bioimageio": "unet.zip"}  # format -> file
PROJECTIONS = ("max", "mean", "sum")  # along z
BACKGROUNDS = ("dark", "bright")
DEPTH = 4  # poolings; the deepest features see 140 pixels, wider than any common nucleus
BASE_FILTERS = 16
COMMAND = "    python "  # begins the lines of a docstring that become the examples of the help


class OptionParser(argparse.ArgumentParser):
    """A parser that shows a script's docstring, names the nearest option, and says a mistake in one line."""

    def __init__(self, doc: str):
        lines = doc.splitlines()
        text = "\n".join(line for line in lines if not line.startswith(COMMAND)).strip()
        examples = "\n".join(line for line in lines if line.startswith(COMMAND))
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=text, epilog=f"examples:\n{examples}", formatter_class=raw)
        self.add_argument("--version", action="version", version=VERSION, help="show the version and exit")

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        """As `ArgumentParser.parse_args`; an option that is not known is an error before any other."""
        for word in sys.argv[1:] if args is None else args:
            name = word.split("=")[0]
            known = self._option_string_actions
            if len(name) > 2 and name.startswith("--") and not any(option.startswith(name) for option in known):
                nearest = get_close_matches(name, known, n=1)
                self.error(f"no option {name}" + (f"; is {nearest[0]} meant?" if nearest else ""))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> None:
        """Ends the process with exit code 2."""
        print(f"error: {message}; --help lists the options", file=sys.stderr)
        sys.exit(2)


def preprocessed_data_parser(doc: str) -> OptionParser:
    """The options of Preprocessed_data.py."""
    parser = OptionParser(doc)
    files = parser.add_argument_group("files")
    files.add_argument("--data", default=find_beside_scripts(DATA), help=f"images and masks (default {DATA})")
    contact_sheet = CONTACT_SHEET if Path(CONTACT_SHEET).parent.is_dir() else Path(CONTACT_SHEET).name
    files.add_argument("--out", default=contact_sheet, help="picture (default %(default)s)")
    return parser


def model_parser(doc: str) -> OptionParser:
    """The options of Model.py."""
    parser = OptionParser(doc)
    network = parser.add_argument_group("network")
    network.add_argument("--depth", type=int, default=DEPTH, help="poolings (default %(default)s)")
    filters = "filters at full resolution (default %(default)s)"
    network.add_argument("--base-filters", type=int, default=BASE_FILTERS, help=filters)
    files = parser.add_argument_group("files")
    files.add_argument("--export", choices=EXPORTS, help="write trained weights for other runtimes, draw nothing")
    weights = f"weights of --export (default {WEIGHTS})"
    files.add_argument("--weights", default=find_beside_scripts(WEIGHTS), help=weights)
    files.add_argument("--out", help=f"picture to draw (default {FIGURE}) or file of --export (unet.onnx, unet.zip)")
    return parser


def predict_masks_parser(doc: str) -> OptionParser:
    """The options of Predict_masks.py."""
    parser = OptionParser(doc)
    files = parser.add_argument_group("files")
    data = find_beside_scripts(DATA)
    sources = "images: folders, .zips, files, wildcards or .txt lists of paths"
    files.add_argument("--data", nargs="+", metavar="SOURCE", default=[data], help=f"{sources} (default {DATA})")
    files.add_argument("--weights", default=find_beside_scripts(WEIGHTS), help=f"network (default {WEIGHTS})")
    files.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    files.add_argument("--overwrite", action="store_true", help="redo images that are done")
    images = parser.add_argument_group("images (found out for each image, where not given)")
    channel = "red, green, blue, a name in the file, a number from 1, or max, the brightest of all at each pixel"
    images.add_argument("--channel", help=channel)
    images.add_argument("--background", choices=BACKGROUNDS, help="on which nuclei are bright, or dark")
    images.add_argument("--project", choices=PROJECTIONS, help="make one image of all planes along z")
    images.add_argument("--diameter", type=float, metavar="PIXELS", help="of the nuclei; sets the scale")
    images.add_argument("--pixel-size", type=float, metavar="MICROMETRES", help="of a pixel; the labels keep it")
    images.add_argument("--level", type=int, metavar="N", help="of slides with a pyramid (default 0, the largest)")
    kept = parser.add_argument_group("nuclei that are kept (default all)")
    kept.add_argument("--min-confidence", type=float, default=0.0, metavar="SHARE", help="from 0 to 1; see nuclei.csv")
    kept.add_argument("--min-area", type=float, default=0.0, metavar="PIXELS", help="smaller nuclei are left out")
    kept.add_argument("--max-area", type=float, metavar="PIXELS", help="larger nuclei are left out")
    kept.add_argument("--clear-border", action="store_true", help="nuclei at the edge of the image are left out")
    results = parser.add_argument_group("results")
    results.add_argument("--show", action="store_true", help="show the files afterwards")
    results.add_argument("--report", action="store_true", help="write a page of all images, the doubtful ones first")
    results.add_argument("--rois", action="store_true", help="write outlines for Fiji's ROI manager")
    results.add_argument("--geojson", action="store_true", help="write detections for QuPath")
    results.add_argument("--submission", action="store_true", help="write Kaggle's table of them")
    machines = parser.add_argument_group("machines")
    machines.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that predicts")
    return parser


def evaluate_model_parser(doc: str) -> OptionParser:
    """The options of Evaluate_model.py."""
    parser = OptionParser(doc)
    files = parser.add_argument_group("files")
    files.add_argument("--truth", required=True, help="images with truth, folder or .zip, or solution .csv")
    predicted = "folder that Predict_masks.py or another tool wrote, or Kaggle's table"
    files.add_argument("--predicted", "--submission", required=True, metavar="SOURCE", help=predicted)
    files.add_argument("--compare", metavar="SOURCE", help="other predictions of the same images")
    files.add_argument("--out", help="folder of scores.csv and scores.png (default: that of --predicted)")
    files.add_argument("--report", action="store_true", help="write a page of the images, the worst first")
    chosen = parser.add_argument_group("images")
    chosen.add_argument("--ids", help="training.json: only its validation ids, predicted with its own weights")
    return parser


def main_parser(doc: str) -> OptionParser:
    """The options of Main.py."""
    parser = OptionParser(doc)
    files = parser.add_argument_group("files")
    files.add_argument("--data", help="images with their truth")
    files.add_argument("--weights", default=find_beside_scripts(WEIGHTS), help=f"network (default {WEIGHTS})")
    files.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    return parser
