"""The tour: loads the trained weights, predicts, shows the pictures and reports the Dice score.

In:  images with truth: --data, else data/stage1_train or data/stage1_train.zip, else data/sample;
     the weights, and beside them training.json, whose training images are never scored.
Out: in --out (default data/<source name>_predicted) what Predict_masks.py and Evaluate_model.py
     write with --report, and comparison.png: image, nuclei found, and the difference to the truth.

    python Main.py
    python Main.py --data data/stage1_train.zip
"""

from data.options import DATA, main_parser

if __name__ == "__main__":
    main_parser(__doc__).parse_args()  # answers --help and mistakes before the slow imports

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.channels import likely_channel
from data.files import UserError, find_beside_scripts, run_script
from data.images import read_image
from data.outputs import default_out, find_complete, prediction_files
from data.pictures import save_comparison, show_pictures
from data.records import find_record
from data.results import find_optional, save_optional
from data.runs import prepare_out
from data.sources import Sample, find_samples
from data.stacks import find_channels, read_sample_image
from data.tables import report_tables
from data.truth import read_labels, was_trained_on
from Evaluate_model import evaluate, format_table, open_truth, report_scores, save_scores
from Model import load_unet
from Predict_masks import PredictionOptions, describe_provenance, predict_samples, show_predictions
from Preprocessed_data import find_training_data, to_display


def choose_samples(data: str, weights: str) -> list[Sample]:
    """The images of a source that these weights were validated on, or else not trained on."""
    samples = find_channels(find_samples(data, with_truth=True))
    record = find_record(weights)
    chosen = [sample for sample in samples if sample.id in record.get("validation_ids", [])]
    chosen = chosen or [sample for sample in samples if not was_trained_on(sample, record)]
    if not chosen:
        raise UserError(f"{data}: {weights} was trained on all of it; score other images")
    known = "none of them" if record else "unknown which were"
    print(f"{data}: {len(chosen)} of {len(samples)} images, {known} trained on")
    return chosen


def compare_with_truth(samples: Sequence[Sample], score_rows: Sequence[dict], out: Path) -> Path:
    """Draws comparison.png of a few scored images."""
    samples_by_id = {sample.id: sample for sample in samples}

    def read(image_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The picture, the truth and the predicted labels of an image."""
        sample = samples_by_id[image_id]
        image = likely_channel(read_sample_image(sample))
        labels = read_image(prediction_files(out, image_id).labels)
        return to_display(image), read_labels(sample, image.shape[:2]), labels

    file = out / "comparison.png"
    save_comparison(score_rows, read, file)
    return file


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    return main_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    data = args.data or find_training_data(default=find_beside_scripts(DATA))[0]
    out = Path(args.out or default_out(data))
    options = PredictionOptions(precision=args.precision)
    model = load_unet(args.weights, options.precision)
    samples = choose_samples(data, args.weights)
    open_truth(data)  # stops now, before the prediction, if the source has no truth
    provenance = describe_provenance(args.weights, options)
    unfinished = prepare_out(samples, out, provenance, [data], args.overwrite)
    former = find_optional(out, unfinished)
    _, unread = predict_samples(unfinished, model, out, provenance, options)
    predicted = [sample.id for sample in samples if sample.id not in unread]
    score_rows, unscored = evaluate(data, out, predicted)
    print(format_table(score_rows))
    complete = [image_id for image_id in find_complete(out) if image_id not in unread]
    report_tables(out, complete, predicted, unread)
    save_optional(out, predicted, former)
    comparison = compare_with_truth(samples, score_rows, out)
    print(f"saved masks, labels and overlays too, and {show_predictions(out)} and {comparison}")
    report_scores(data, out, score_rows, save_scores(score_rows, out))
    show_pictures(comparison)
    return 1 if unread or unscored else 0


if __name__ == "__main__":
    run_script(main)
