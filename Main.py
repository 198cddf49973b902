"""The tour: loads the trained weights, predicts, shows the pictures and reports the Dice score.

In:  images with masks: --data, else data/stage1_train or data/stage1_train.zip, else data/sample;
     the weights, and beside them training.json with the ids they were trained on, never scored.
Out: in --out (default data/<source name>_predicted) what Predict_masks.py and Evaluate_model.py
     write, and comparison.png: image, truth and prediction from the worst Dice to the best.

    python Main.py
    python Main.py --data data/stage1_train.zip
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import Evaluate_model
import Model
import Predict_masks
import Preprocessed_data
import Train

COMPARED = 5  # images in comparison.png


def choose_samples(data: str, weights: str) -> list[Preprocessed_data.Sample]:
    """The images of a source that these weights were validated on, or else not trained on."""
    samples = Preprocessed_data.open_source(data)
    record = Train.training_record(weights)
    held, seen = (set(record.get(f"{side}_ids", ())) for side in ("validation", "training"))
    chosen = [s for s in samples if s.id in held] or [s for s in samples if s.id not in seen]
    if not chosen:
        raise ValueError(f"{data}: {weights} was trained on all of it; score other images")
    known = "none of them" if record else "unknown which were"
    print(f"{data}: {len(chosen)} of {len(samples)} images, {known} trained on")
    return chosen


def save_comparison(samples, rows: list[dict], out: Path) -> Path:
    """Draws image, truth and prediction of images evenly spaced from the worst Dice to the best."""
    files, pictures, titles = {sample.id: sample for sample in samples}, [], []
    rows = sorted(rows, key=lambda row: row["dice"])
    places = {i * (len(rows) - 1) // (COMPARED - 1) for i in range(COMPARED)}
    for row in map(rows.__getitem__, sorted(places)):
        image, truth = Preprocessed_data.read_sample(files[row["id"]])
        found = Preprocessed_data.read_image(out / "labels" / f"{row['id']}.tif")
        pictures += [Preprocessed_data.outline_nuclei(image, x) for x in (0 * truth, truth, found)]
        titles += [row["id"][:24], f"truth, {row['nuclei_true']} nuclei"]
        titles += [f"prediction, {row['nuclei_predicted']} nuclei, Dice {row['dice']:.2f}"]
    Preprocessed_data.save_contact_sheet(pictures, titles, out / "comparison.png", columns=3)
    return out / "comparison.png"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", help="images with masks")
    parser.add_argument("--weights", default=Predict_masks.WEIGHTS, help="default %(default)s")
    parser.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    data = args.data or Preprocessed_data.find_data(or_else=Preprocessed_data.DATA)
    out = Path(args.out or Predict_masks.default_out(data))
    model, origin = Model.load_unet(args.weights), Predict_masks.describe_origin(args.weights)
    samples = choose_samples(data, args.weights)
    Evaluate_model.open_truth(data)  # or it would fail after the work
    written, unread = Predict_masks.predict_samples(samples, model, out, origin)
    rows, unscored = Evaluate_model.evaluate(data, out, written)
    print(Evaluate_model.format_table(rows))
    Evaluate_model.save_scores(rows, out)
    pictures = Predict_masks.show_predictions(out), save_comparison(samples, rows, out)
    print(f"saved masks, labels and overlays too, and {' and '.join(map(str, pictures))}")
    Preprocessed_data.show_pictures(pictures[-1])
    return 1 if unread or unscored else 0


if __name__ == "__main__":
    Preprocessed_data.run_script(main)
