"""Writes the files of predicted images: those of each image, of a large one strip by strip, and those of all images.

In:  `ImageWork`, the job that found the nuclei, and labels (H, W) int32 or strips of them.
Out: files of `data.outputs.prediction_files`, and files of all images in the same folder.
"""

import argparse
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.confidence import NucleusSums, choose_kept
from data.files import UserError, write_whole
from data.images import open_rows, read_shape, subsample
from data.layouts import OPTIONAL_FOLDERS, count_of
from data.nuclei import keep_labels
from data.omezarr import import_zarr, save_zarr
from data.options import repeat_command
from data.outputs import (
    FAST_COMPRESSION,
    Provenance,
    find_complete,
    mask_of,
    prediction_files,
    read_provenance,
    save_png,
    save_submission,
    save_tiles,
    write_prediction,
)
from data.pictures import outline_nuclei
from data.report import REPORT, write_report
from data.runs import ImageWork, Run, describe_skipped
from data.scales import PredictionJob, describe_job
from data.slides import LabelStrips, iterate_strips
from data.sources import Sample
from data.tables import report_tables, save_geojson, save_measurements, save_rois

PLANE_SUFFIX = re.compile(r"_[stz]\d+$")  # ends the id of a plane or scene, see `data.stacks.expand_planes`
OVERLAY_PIXELS = 2048 * 2048  # pixels of the reduced overlay of a large image


def write_image(run: Run, work: ImageWork, job: PredictionJob, labels: np.ndarray, picture: np.ndarray) -> None:
    """Writes the files of an image.

    Args:
        run: what all images share.
        work: the image.
        job: the way it was seen, and the confidence of its nuclei.
        labels: (H, W) int32.
        picture: (H, W, 3) uint8, the image as people look at it.
    """
    files = prediction_files(run.out, work.sample.id)
    files.remove_optional()
    save_measurements(files, labels, work.image, work.pixel_size, job, run.options.channel)
    overlay = outline_nuclei(picture, labels)
    write_prediction(files, labels, overlay, with_image(run, work, job), work.pixel_size)


def write_slide(run: Run, work: ImageWork, job: PredictionJob, strips: LabelStrips, picture: np.ndarray) -> None:
    """Writes the files of a large image strip by strip, so that memory never holds the whole.

    Args:
        run: what all images share.
        work: the image, by its rows.
        job: the way it is seen; gets the confidence of the nuclei that are kept.
        strips: of `data.slides.label_strips`.
        picture: (h, w, 3) uint8, the image as people look at it, of `subsample` with OVERLAY_PIXELS.
    """
    files = prediction_files(run.out, work.sample.id)
    files.remove_optional()
    provenance = with_image(run, work, job)
    save = functools.partial(save_tiles, shape=work.image.shape[:2], provenance=provenance, pixel_size=work.pixel_size)
    sums = NucleusSums(work.image.shape[0])
    # Labels take their name at the end of this block: to a rerun they say that all files of the image are there.
    with write_whole(files.labels) as temporary:
        save(temporary, sums.watch(strips), dtype=np.uint32)
        is_kept = choose_kept(job, sums, run.network.calibration, run.options)
        if not is_kept[1:].all():
            # On Windows a file that is read cannot be replaced: the labels are closed first.
            with write_whole(temporary) as filtered, open_rows(temporary) as labels:
                save(filtered, (keep_labels(strip, is_kept) for strip in iterate_strips(labels)), dtype=np.uint32)
        with open_rows(temporary) as labels:
            with write_whole(files.tiled_mask) as mask:
                save(mask, map(mask_of, iterate_strips(labels)), dtype=np.uint8)
            small_labels = subsample(labels, OVERLAY_PIXELS)
            save_measurements(files, labels, work.image, work.pixel_size, job, run.options.channel)
        with write_whole(files.overlay) as overlay:
            save_png(overlay, outline_nuclei(picture, small_labels), FAST_COMPRESSION)
    files.mask.unlink(missing_ok=True)  # a smaller image of this name had it


def with_image(run: Run, work: ImageWork, job: PredictionJob) -> Provenance:
    """The provenance of a run that also tells of the image: its size and checksum, and how it was seen."""
    seen = describe_job(job)
    sample = work.sample
    if sample.plane:
        seen["plane"] = sample.plane._asdict()
    if sample.scene is not None:
        seen["scene"] = sample.scene
    level = run.options.level
    if level:
        full_height, full_width = read_shape(sample.image, 0, sample.scene)
        height, width = read_shape(sample.image, level, sample.scene)
        seen["level_scale"] = [full_height / height, full_width / width]
    return run.provenance | {"image": work.checksum, "seen": seen}


def check_results(args: argparse.Namespace) -> None:
    """Raises UserError where what the options of Predict_masks.py ask for cannot be written: before the prediction."""
    if args.zarr:
        import_zarr()
    if args.level and args.rois:
        raise UserError(f"--level {args.level}: --rois fit the largest level alone; leave it out, or use --geojson")


def write_results(
    out: Path,
    ids: Sequence[str],
    skipped: Mapping[str, str],
    args: argparse.Namespace,
    former: Mapping[str, Sequence[str]],
) -> None:
    """Writes the tables of all images, and what the options of Predict_masks.py ask for beside them; says where.

    Tables, report and Kaggle's table hold the images of earlier runs too, for their labels lie in the same folder.

    Args:
        out: folder of the predictions.
        ids: of all images of this command that are not skipped, predicted now or before.
        skipped: id -> reason of the others; what an earlier run predicted for them is no answer to this one.
        args: the options.
        former: of `find_optional`, of the images whose labels this run replaced: these files are written anew too.
    """
    print(f"saved masks, labels and overlays to {out}")
    all_ids = [image_id for image_id in find_complete(out) if image_id not in skipped]
    report_tables(out, all_ids, ids, skipped)
    for image_id in find_counted_twice(out, all_ids):
        print(f"{image_id} lies in {out} whole and in planes or scenes: the tables count it twice; name another --out")
    save_optional(out, ids, {option: ids if getattr(args, option) else former[option] for option in former})
    if args.submission:
        print(f"saved Kaggle's table to {save_submission(out, all_ids)}")
    if args.report:
        print(f"saved the report to {write_report(out, all_ids, skipped=skipped)}")


def say_what_next(out: Path, skipped: Mapping[str, str], argv: Sequence[str] | None, has_report: bool) -> None:
    """Prints what to look at, which images were skipped, and what to type next; `argv` is that of the script."""
    if not has_report:
        command = repeat_command("Predict_masks.py", argv, "--report", without=["--overwrite"])
        note = ", for the report there is of an earlier run" if (out / REPORT).exists() else ""
        print(f"look at {out / 'overlays'}, or at all on one page{note}: {command}")
    if skipped:
        print(describe_skipped(sorted(skipped)))
    if any("--channel" in reason for reason in skipped.values()):
        command = repeat_command("Predict_masks.py", argv, "--only ID --channel NAME", without=["--overwrite"])
        print(f"predict them alone: {command}")


def find_optional(out: str | Path, samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Of these images the ids that have a file of an option: option -> ids."""
    files = {sample.id: prediction_files(out, sample.id).optional() for sample in samples}
    return {option: [image_id for image_id in files if files[image_id][option].exists()] for option in OPTIONAL_FOLDERS}


def save_optional(out: Path, ids: Sequence[str], wanted: Mapping[str, Sequence[str]]) -> None:
    """Writes ROIs, GeoJSON and OME-Zarr of images from their labels and tables, and says where.

    Args:
        out: folder of the predictions.
        ids: images that are predicted.
        wanted: option -> ids of the images that are to have its file; others than `ids` are left out.
    """
    for option, save in (("rois", save_rois), ("geojson", save_geojson), ("zarr", save_zarr)):
        present = sorted({*wanted[option]} & {*ids})
        for image_id in present:
            (out / option).mkdir(exist_ok=True)
            save(prediction_files(out, image_id))
        if present:
            print(f"saved the nuclei of {count_of(len(present), 'image')} to {out / option} too")


def find_counted_twice(out: Path, ids: Sequence[str]) -> list[str]:
    """Ids of images of which planes or scenes have labels of their own, as these say."""
    known = set(ids)
    wholes = set()
    for image_id in ids:
        whole = image_id
        while PLANE_SUFFIX.search(whole):
            whole = PLANE_SUFFIX.sub("", whole)
            if whole in known and is_part(out, image_id):
                wholes.add(whole)
    return sorted(wholes)


def is_part(out: Path, image_id: str) -> bool:
    """Whether labels are of a plane or scene of a file."""
    seen = read_provenance(prediction_files(out, image_id).labels).get("seen") or {}
    return "plane" in seen or "scene" in seen
