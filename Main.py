"""The tour: loads the trained weights, predicts, shows the pictures and reports the Dice score.

In:  images with masks: --data, else data/stage1_train or data/stage1_train.zip, else data/sample;
     the weights, and beside them training.json with the ids they were trained on, never scored.
Out: masks, labels, overlays and predictions.png as Predict_masks.py, scores.csv and scores.png as
     Evaluate_model.py, all in --out (default data/<source name>_predicted).

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


def choose_samples(data: str, weights: str) -> list[Preprocessed_data.Sample]:
    """The images of a source that these weights were not trained on."""
    samples = Preprocessed_data.open_source(data)
    trained_on = set(Train.read_record(weights).get("training_ids", ()))
    chosen = [sample for sample in samples if sample.id not in trained_on]
    if not chosen:
        raise ValueError(f"{data}: {weights} was trained on all of it; score other images")
    print(f"{data}: {len(chosen)} of {len(samples)} images, none of them trained on")
    return chosen


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="images with masks")
    parser.add_argument("--weights", default=Predict_masks.WEIGHTS, help="default %(default)s")
    parser.add_argument("--out", help="folder to write to (default data/<source name>_predicted)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    data = args.data or Preprocessed_data.find_data(or_else=Preprocessed_data.DATA)
    out = args.out or Predict_masks.default_out(data)
    model = Model.load_unet(args.weights)
    samples = choose_samples(data, args.weights)
    written, unread = Predict_masks.predict_samples(samples, model, out)
    picture = Predict_masks.show_predictions(out)
    rows, unscored = Evaluate_model.evaluate(data, out, written)
    print(Evaluate_model.format_table(rows))
    Evaluate_model.save_scores(rows, Path(out))
    print(f"saved masks, labels and overlays to {out}, some of them in {picture}")
    return 1 if unread or unscored else 0


if __name__ == "__main__":
    Preprocessed_data.run_script(main)
