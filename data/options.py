"""The options of the scripts; quick to import, so that --help and mistakes are answered before the slow libraries load.

In:  the docstring of a script, which becomes its help, and the words of the command line.
Out: the values of its options; those that a result depends on are `TrainingOptions` and `PredictionOptions`.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path

from data.files import UserError, find_beside_scripts

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
KINDS = ("fluorescence", "brightfield", "stained tissue")  # kinds of images
UNKNOWN_KIND = "unknown"  # kind of the images of a solution .csv, which holds only their nuclei
SEED = 2018
TRAINED = "weights/trained"  # beside the weights that the scripts use, which stay
PRECISIONS = ("float32", "mixed_bfloat16")
# The defaults with --from; the crops of an epoch follow from the number of training images.
FINE_TUNING = {"epochs": 10, "crops": None, "learning_rate": 5e-4}
CROPS_PER_IMAGE = 16
MIN_CROPS = 256
MAX_CROPS = 1024
CHANNELS = "red, green, blue, a name in the file, a number from 1, or max, the brightest of all at each pixel"
DIAMETERS = (3, 3000)  # pixels, least and most of a nucleus; others are micrometres by mistake, or cost much memory
MAX_PIXEL_SIZE = 20  # micrometres; files with larger ones mean printers and screens, such as 72 pixels an inch
COMMAND = "    python "  # begins the lines of a docstring that become the examples of the help


@dataclass(frozen=True)
class TrainingOptions:
    """What a training is made with; training.json keeps it, and --resume asks for the same."""

    epochs: int = 30
    crops: int | None = 2560  # an epoch; None: see `with_crops`
    batch_size: int = 8
    crop_size: int = 256  # pixels, side
    learning_rate: float = 2e-3  # the highest of the schedule
    base_filters: int = BASE_FILTERS
    depth: int = DEPTH
    precision: str = "mixed_bfloat16"  # see `Model.fastest_precision`
    seed: int = SEED  # of weights and crops
    split_seed: int = SEED
    hold_out: str | None = None  # kind of image
    from_weights: str | None = None  # file that the training starts from; None: from random weights
    channel: str | None = None  # where images have several, as in `PredictionOptions`

    @property
    def steps_per_epoch(self) -> int:
        """Batches of one epoch."""
        return math.ceil(self.crops / self.batch_size)

    def with_crops(self, image_count: int) -> "TrainingOptions":
        """The same options, with the crops that suit this number of training images where none are given."""
        if self.crops is not None:
            return self
        return replace(self, crops=min(max(CROPS_PER_IMAGE * image_count, MIN_CROPS), MAX_CROPS))

    def check(self, processes: int) -> None:
        """Raises UserError where the options do not fit."""
        if min(self.depth, self.base_filters) < 1:
            raise UserError("--depth and --base-filters must be above 0")
        if min(self.seed, self.split_seed) < 0 or max(self.seed, self.split_seed) >= 2**32:
            raise UserError(f"--seed and --split-seed must be from 0 to {2**32 - 1}")
        multiple = 2**self.depth
        if self.crop_size % multiple:
            raise UserError(f"--crop-size must be a multiple of {multiple}, not {self.crop_size}")
        has_no_crops = self.crops is not None and self.crops < 1
        if has_no_crops or min(self.epochs, self.batch_size, self.crop_size) < 1:
            raise UserError("--epochs, --crops, --batch-size and --crop-size must be above 0")
        if self.from_weights and not Path(self.from_weights).is_file():
            raise UserError(f"--from {self.from_weights}: no such weights")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"--learning-rate must be above 0, not {self.learning_rate}")
        if self.batch_size % processes:
            raise UserError(f"--batch-size must be a multiple of {processes}, the processes")


def choose_options(args: argparse.Namespace) -> TrainingOptions:
    """The options of a training by those of the command line; with --from others are usual, see FINE_TUNING."""
    usual = FINE_TUNING if args.from_weights else vars(TrainingOptions())
    values = {field.name: getattr(args, field.name) for field in fields(TrainingOptions)}
    for name in FINE_TUNING:
        if values[name] is None:
            values[name] = usual[name]
    if values["split_seed"] is None:
        values["split_seed"] = values["seed"]
    return TrainingOptions(**values)


@dataclass(frozen=True)
class Limits:
    """Which nuclei are kept."""

    min_confidence: float | None = None  # None: that of the network's calibration
    min_area: float = 0.0  # pixels of the image
    max_area: float | None = None  # pixels of the image
    clear_border: bool = False  # whether nuclei that touch the edge of the image are left out


@dataclass(frozen=True)
class PredictionOptions(Limits):
    """How images are to be seen, where None means that it is found out for each image, and which nuclei are kept."""

    channel: str | None = None  # its name, its number from 1, or "max", the brightest of all at each pixel
    background: str | None = None  # "dark" or "bright"
    project: str | None = None  # "max", "mean" or "sum" along z
    diameter: float | None = None  # width of nuclei, pixels
    level: int | None = None  # level of a pyramid, 0 the largest
    pixel_size: float | None = None  # micrometres; of labels and tables, the scale does not depend on it
    precision: str = "float32"  # precision of the network

    def check(self) -> None:
        """Raises UserError where a number does not make sense."""
        if self.pixel_size is not None and not (math.isfinite(self.pixel_size) and self.pixel_size > 0):
            raise UserError(f"--pixel-size must be above 0, not {self.pixel_size}")
        if self.diameter is not None and not DIAMETERS[0] <= self.diameter <= DIAMETERS[1]:
            raise UserError(f"--diameter must be from {DIAMETERS[0]} to {DIAMETERS[1]} pixels, not {self.diameter:g}")
        if self.pixel_size is not None and self.pixel_size > MAX_PIXEL_SIZE:
            raise UserError(
                f"--pixel-size {self.pixel_size} is wider than a nucleus; "
                f"it is in micrometres, at most {MAX_PIXEL_SIZE}"
            )
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise UserError(f"--min-confidence must be from 0 to 1, not {self.min_confidence}")
        if not self.min_area >= 0:
            raise UserError(f"--min-area must be 0 or more, not {self.min_area}")
        if self.max_area is not None and not self.max_area > self.min_area:
            raise UserError(f"--max-area must be above --min-area, not {self.max_area} and {self.min_area}")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision must be {' or '.join(PRECISIONS)}, not {self.precision}")
        if self.level is not None and self.level < 0:
            raise UserError(f"--level must be 0, the largest, or more, not {self.level}")


def number(text: str) -> float:
    """A number of the command line; argparse reports the error of another text."""
    if text.count(",") == 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number; write a point, {text.replace(',', '.')}")
    return float(text)


class OptionParser(argparse.ArgumentParser):
    """A parser that shows a script's docstring, names the nearest option, and reports a mistake in one line."""

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


def repeat_command(script: str, argv: Sequence[str] | None, more: str, without: Sequence[str] = ()) -> str:
    """The command that a script was called with, to be copied, with more words and without some others.

    >>> repeat_command("Train.py", ["--out", "my weights", "--overwrite"], "--resume", without=["--overwrite"])
    "python Train.py --out 'my weights' --resume"
    """
    words = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", script, *(word for word in words if word not in without), *more.split()])


def preprocessed_data_parser(doc: str) -> OptionParser:
    """The options of Preprocessed_data.py."""
    parser = OptionParser(doc)
    files = parser.add_argument_group("files")
    files.add_argument("--data", default=find_beside_scripts(DATA), help=f"images and masks (default {DATA})")
    contact_sheet = CONTACT_SHEET if Path(CONTACT_SHEET).parent.is_dir() else Path(CONTACT_SHEET).name
    files.add_argument("--out", default=contact_sheet, help="picture (default %(default)s)")
    files.add_argument("--nuclei", metavar="FILE", help="also measure the true nuclei, and write this table, a .csv")
    width = "width of a pixel, for this table (default as the file says)"
    files.add_argument("--pixel-size", type=float, metavar="MICROMETRES", help=width)
    return parser


def model_parser(doc: str) -> OptionParser:
    """The options of Model.py."""
    parser = OptionParser(doc)
    network = parser.add_argument_group("network")
    depth = "how often the network halves the image (default %(default)s)"
    network.add_argument("--depth", type=int, default=DEPTH, help=depth)
    filters = "filters at full resolution (default %(default)s)"
    network.add_argument("--base-filters", type=int, default=BASE_FILTERS, help=filters)
    files = parser.add_argument_group("files")
    files.add_argument("--export", choices=EXPORTS, help="write trained weights for other runtimes, draw nothing")
    weights = f"weights of --export (default {WEIGHTS})"
    files.add_argument("--weights", default=find_beside_scripts(WEIGHTS), help=weights)
    files.add_argument("--out", help=f"picture to draw (default {FIGURE}) or file of --export (unet.onnx, unet.zip)")
    return parser


def train_parser(doc: str) -> OptionParser:
    """The options of Train.py; those that FINE_TUNING names are None where they are not given."""
    parser = OptionParser(doc)
    default = TrainingOptions()

    def add_number(group, option: str, default: int, description: str) -> None:
        """Adds an option that takes a whole number."""
        group.add_argument(option, type=int, default=default, help=f"{description} (default %(default)s)")

    files = parser.add_argument_group("files")
    default_data = "data/stage1_train(.zip) and data/tnbc(.zip), where they are"
    files.add_argument("--data", nargs="+", metavar="SOURCE", help=f"images with their truth (default {default_data})")
    files.add_argument("--channel", help=f"{CHANNELS} (default that of the truth's prediction, or a nuclear stain)")
    files.add_argument("--out", default=TRAINED, help="folder to write to (default %(default)s)")
    files.add_argument("--from", dest="from_weights", metavar="FILE", help="trained weights to start from")
    files.add_argument("--resume", action="store_true", help="continue an interrupted training in --out")
    files.add_argument("--overwrite", action="store_true", help="replace a training in --out, kept as *.before")
    tensorboard = "also write the scores of each epoch here, for tensorboard --logdir DIR"
    files.add_argument("--tensorboard", metavar="DIR", help=tensorboard)
    length = parser.add_argument_group("length")
    epochs = f"passes (default {default.epochs}, with --from {FINE_TUNING['epochs']})"
    length.add_argument("--epochs", type=int, help=epochs)
    few = f"{CROPS_PER_IMAGE} for each training image, but {MIN_CROPS} to {MAX_CROPS}"
    length.add_argument("--crops", type=int, help=f"crops an epoch (default {default.crops}, with --from {few})")
    recipe = parser.add_argument_group("recipe")
    add_number(recipe, "--batch-size", default.batch_size, "crops a batch")
    add_number(recipe, "--crop-size", default.crop_size, "side of a crop, pixels")
    rates = f"default {default.learning_rate}, with --from {FINE_TUNING['learning_rate']}"
    recipe.add_argument("--learning-rate", type=number, help=f"highest rate of the schedule ({rates})")
    add_number(recipe, "--base-filters", default.base_filters, "filters at full resolution")
    add_number(recipe, "--depth", default.depth, "poolings")
    add_number(recipe, "--seed", default.seed, "of weights, crops and the split")
    recipe.add_argument("--split-seed", type=int, metavar="SEED", help="of the split alone (default that of --seed)")
    add_precision(recipe)
    recipe.add_argument("--hold-out", choices=KINDS, help="score on all images of this kind, train on the rest")
    return parser


def add_precision(group: argparse._ArgumentGroup, default: str | None = None) -> None:
    """Adds the option that says in which precision the network computes; None is the faster on the machine."""
    usual = default or "the faster on this machine"
    description = f"precision of the network (default {usual})"
    group.add_argument("--precision", choices=PRECISIONS, default=default, help=description)


def predict_masks_parser(doc: str) -> OptionParser:
    """The options of Predict_masks.py."""
    parser = OptionParser(doc)
    files = parser.add_argument_group("files")
    data = find_beside_scripts(DATA)
    sources = "images: folders, .zips, files, wildcards or .txt lists of paths"
    files.add_argument("--data", nargs="+", metavar="SOURCE", default=[data], help=f"{sources} (default {DATA})")
    files.add_argument("--weights", default=find_beside_scripts(WEIGHTS), help=f"network (default {WEIGHTS})")
    files.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    files.add_argument("--only", nargs="+", metavar="ID", help="predict these images alone, as the tables call them")
    files.add_argument("--overwrite", action="store_true", help="redo images that are done")
    images = parser.add_argument_group("images (found out for each image, where not given)")
    images.add_argument("--channel", help=CHANNELS)
    images.add_argument("--background", choices=BACKGROUNDS, help="dark: nuclei are bright; bright: they are dark")
    images.add_argument("--project", choices=PROJECTIONS, help="make one image of all planes along z")
    images.add_argument("--diameter", type=number, metavar="PIXELS", help="width of nuclei; sets the scale")
    images.add_argument("--pixel-size", type=number, metavar="MICROMETRES", help="width of a pixel, for the tables")
    images.add_argument("--level", type=int, metavar="N", help="level of a pyramid of slides (default 0, the largest)")
    kept = parser.add_argument_group("nuclei that are kept")
    confidence_help = "less sure ones are left out, 0: none; default: what suits the weights, 0.1 for the shipped ones"
    kept.add_argument("--min-confidence", type=number, metavar="SHARE", help=confidence_help)
    kept.add_argument("--min-area", type=number, default=0.0, metavar="PIXELS", help="smaller nuclei are left out")
    kept.add_argument("--max-area", type=number, metavar="PIXELS", help="larger nuclei are left out")
    kept.add_argument("--clear-border", action="store_true", help="nuclei at the edge of the image are left out")
    results = parser.add_argument_group("results")
    results.add_argument("--show", action="store_true", help="show the files afterwards")
    results.add_argument("--report", action="store_true", help="write a page of all images, the doubtful ones first")
    results.add_argument("--rois", action="store_true", help="write outlines for Fiji's ROI manager")
    results.add_argument("--geojson", action="store_true", help="write detections for QuPath")
    results.add_argument("--zarr", action="store_true", help="write labels as OME-Zarr, in several resolutions")
    results.add_argument("--submission", action="store_true", help="write Kaggle's table of them")
    machines = parser.add_argument_group("machines")
    machines.add_argument("--scheduler", metavar="ADDRESS", help="Dask cluster that predicts, host:port")
    add_precision(machines)
    return parser


def evaluate_model_parser(doc: str) -> OptionParser:
    """The options of Evaluate_model.py."""
    parser = OptionParser(doc)
    files = parser.add_argument_group("files")
    files.add_argument("--truth", required=True, help="images with truth, folder or .zip, or solution .csv")
    predicted = "folder that Predict_masks.py or another tool wrote, or Kaggle's table"
    files.add_argument("--predicted", "--submission", required=True, metavar="SOURCE", help=predicted)
    files.add_argument("--compare", metavar="SOURCE", help="other predictions of the same images")
    files.add_argument("--out", help="folder of scores.csv, summary.csv and scores.png (default: that of --predicted)")
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
    files.add_argument("--overwrite", action="store_true", help="redo images that are done, by any weights")
    add_precision(parser.add_argument_group("machine"), "float32")  # the same figures on every machine
    return parser
