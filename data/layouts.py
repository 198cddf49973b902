"""Pairs the images of a source with their truth, by folders and names. No file is opened here.

The truth of an image is one file: a label picture, a ROI set of ImageJ or GeoJSON of QuPath. It lies, for the image

    images/NAME.*           in masks/NAME.*, labels/NAME.* or truth/NAME.*, with the same folders above and below
    NAME.*                  in NAME_masks.*, NAME_cp_masks.*, NAME_label.* and so on beside it, as Cellpose has it
    imagesTr/NAME_0000.*    in labelsTr/NAME.*, as nnU-Net has it
    NAME.*                  in NAME.zip, NAME.roi or NAME.geojson beside it, or in rois/ or geojson/
    that has the id ID      in labels/ID.tif, as Predict_masks.py writes it
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from data.files import File, UserError

PLAIN_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".svs", ".ndpi", ".scn", ".qptiff")
MASK_FOLDERS = ("masks", "labels", "overlays", "truth", "rois")  # beside images they hold no images to predict
TRUTH_SUFFIXES = ("_cp_masks", "_masks", "_mask", "_labels", "_label")  # after the name of the image
TRUTH_FOLDERS = {  # folder -> endings of the truth in it
    "masks": PLAIN_ENDINGS,
    "labels": PLAIN_ENDINGS,
    "truth": PLAIN_ENDINGS,
    "rois": (".zip", ".roi"),
    "geojson": (".geojson",),
}
TABLE_ENDINGS = (".csv", ".json")  # endings of what Predict_masks.py writes beside its folders
SOURCE_RECORD = "source.json"  # marks a folder of results, see data/outputs.py
RESULT_FOLDERS = ("masks", "labels", "overlays", "tables")  # folders of results in such a folder
RESULT_PICTURES = ("predictions.png", "scores.png", "comparison.png")  # that the scripts write beside these folders
OPTIONAL_FOLDERS = ("rois", "geojson", "zarr")  # folders of results that have to be asked for
OUTLINE_ENDINGS = (*TRUTH_FOLDERS["rois"], *TRUTH_FOLDERS["geojson"])
NNUNET_FOLDER = re.compile("images(Tr|Ts|Val)")
NNUNET_TEST = "imagesTs"  # images that nobody need have labelled
NNUNET_CHANNEL = re.compile("(.+)_([0-9]{4})")
SHOWN_NAMES = 5
# Why a file is left out, for one and for many.
LEFT_UNREAD = ("file", "files")
LEFT_MASKS = ("mask beside images", "masks beside images")
LEFT_RESULTS = ("picture of earlier results", "pictures of earlier results")
LEFT_LINKS = ("broken link", "broken links")
LEFT_WITHOUT_TRUTH = ("image without truth", "images without truth")

PathParts = tuple[str, ...]  # the folders of a file below the source, and its name
LeftOut = dict[tuple[str, str], list[File]]  # reason -> files


class Plane(NamedTuple):
    """Which plane of a stack is meant; None: there is one, or all along z are projected onto one."""

    z: int | None  # counted from 0
    t: int | None


@dataclass(frozen=True)
class Sample:
    """One image of a source, with its truth where the source has truth."""

    id: str
    image: File
    masks: tuple[File, ...] = ()  # one for each nucleus
    plane: Plane | None = None  # plane of a stack, see data/stacks.py
    source: str = ""  # folder, or .zip without its ending, where `find_samples` found it
    scene: int | None = None  # scene of a file with several, see data/stacks.py
    truths: tuple[File, ...] = ()  # files with all nuclei, where there are no masks; there should be one

    @property
    def has_truth(self) -> bool:
        """Whether masks or another truth belong to the image."""
        return bool(self.masks or self.truths)


def index_files(files: Iterable[tuple[PathParts, File]]) -> dict[PathParts, list[File]]:
    """Files by their folder and name without ending, in small letters."""
    index = defaultdict(list)
    for parts, file in files:
        index[lower_parts((*parts[:-1], file.stem))].append(file)
    return index


def find_truths(index: dict[PathParts, list[File]], folder: PathParts, stem: str, image_id: str) -> tuple[File, ...]:
    """All files that may be the truth of an image; there should be one.

    Args:
        index: of `index_files`.
        folder: of the image.
        stem: name of the image without its ending, in nnU-Net's layout also without its channel.
        image_id: id of the image.
    """
    truths = {}
    for path, endings in _list_candidates(folder, stem, image_id):
        truths |= {str(file): file for file in index.get(lower_parts(path), ()) if file.name.lower().endswith(endings)}
    return tuple(truths.values())


def lower_parts(parts: PathParts) -> PathParts:
    """The parts of a path in small letters: the case of letters tells no layout."""
    return tuple(name.lower() for name in parts)


def _list_candidates(folder: PathParts, stem: str, image_id: str) -> list[tuple[PathParts, tuple[str, ...]]]:
    """Folder and name without ending of each place where the truth of an image may lie, and its endings."""
    candidates = [((*folder, stem + suffix), PLAIN_ENDINGS) for suffix in TRUTH_SUFFIXES]
    candidates.append(((*folder, stem), OUTLINE_ENDINGS))
    depths = [depth for depth, name in enumerate(lower_parts(folder)) if name == "images"]
    for truth_folder, endings in TRUTH_FOLDERS.items():
        paths = [(*folder, truth_folder)]
        if depths:  # in place of the deepest images/
            paths.append((*folder[: depths[-1]], truth_folder, *folder[depths[-1] + 1 :]))
        candidates += [((*path, stem + suffix), endings) for path in paths for suffix in ("", *TRUTH_SUFFIXES)]
        candidates.append(((truth_folder, image_id), endings))
    if folder and NNUNET_FOLDER.fullmatch(folder[-1]):
        candidates.append(((*folder[:-1], _nnunet_labels(folder[-1]), stem), PLAIN_ENDINGS))
    return candidates


def split_truth_files(files: Sequence[File]) -> tuple[list[File], list[File]]:
    """Splits the image files of a folder into images, and truth such as X_masks.tif beside X.tif.

    Where one image has such truth, all files of such names are truth.
    """
    stems = {file.stem.lower() for file in files}
    has_truth = {stem for stem in stems if any(stem + suffix in stems for suffix in TRUTH_SUFFIXES)}
    image_files = []
    truth_files = []
    for file in files:
        stem = file.stem.lower()
        if has_truth and stem.endswith(TRUTH_SUFFIXES) and stem not in has_truth:
            truth_files.append(file)
        else:
            image_files.append(file)
    return image_files, truth_files


def nnunet_name(folder: PathParts, stem: str, stems: Collection[str], folders: Container[PathParts]) -> str | None:
    """NAME of imagesTr/NAME_0000.* with a labelsTr/ beside it; None for other images, and for several channels.

    Args:
        folder: of the image.
        stem: name of the image without its ending.
        stems: of all images of the folder.
        folders: all that hold image files.
    """
    channel = NNUNET_CHANNEL.fullmatch(stem)
    is_nnunet = folder and NNUNET_FOLDER.fullmatch(folder[-1]) and channel
    if not is_nnunet or (*folder[:-1], _nnunet_labels(folder[-1])) not in folders:
        return None
    is_only = channel[2] == "0000" and f"{channel[1]}_0001" not in stems
    return channel[1] if is_only else None


def _nnunet_labels(folder: str) -> str:
    return folder.replace("images", "labels")


def is_beside_images(folder: PathParts, image_folders: Container[PathParts], above: Container[PathParts]) -> bool:
    """Whether a folder is, or lies in, masks/ or the like with a folder images/, or image files, beside it.

    Args:
        folder: below the source.
        image_folders: folders that hold image files.
        above: of `lower_parts`, these folders and all above them.
    """
    for depth, name in enumerate(folder):
        parent = folder[:depth]
        if name.lower() in MASK_FOLDERS and (parent in image_folders or lower_parts((*parent, "images")) in above):
            return True
        image_folder = name.replace("labels", "images")
        if image_folder != name and NNUNET_FOLDER.fullmatch(image_folder) and (*parent, image_folder) in image_folders:
            return True
    return False


def is_truth(file: File) -> bool:
    """Whether a file that was left out beside images was meant as truth, by its folder or name."""
    folder = file.parent.name
    is_nnunet = NNUNET_FOLDER.fullmatch(folder.replace("labels", "images"))
    endings = PLAIN_ENDINGS if is_nnunet else TRUTH_FOLDERS.get(folder.lower(), ())
    is_named_so = file.stem.lower().endswith(TRUTH_SUFFIXES) and file.name.lower().endswith(PLAIN_ENDINGS)
    return is_named_so or file.name.lower().endswith(tuple(endings))


def is_in_results(folder: PathParts, results: Container[PathParts]) -> bool:
    """Whether a folder is, or lies in, a folder of results below the source."""
    return any(folder[:depth] in results for depth in range(1, len(folder) + 1))


def is_result(file: Path) -> bool:
    """Whether a picture is one of those that the scripts write into a folder of results."""
    folder = file.parent
    if file.name in RESULT_PICTURES and (folder / SOURCE_RECORD).is_file():
        return True
    return folder.name in RESULT_FOLDERS and (folder.parent / SOURCE_RECORD).is_file()


def pair_masks(sample: Sample) -> Sample:
    """The sample of an image in Kaggle's layout; a sole mask with the name of the image is the truth of all nuclei.

    It may have one of TRUTH_SUFFIXES after the name, as in other layouts.
    """
    names = {(sample.image.stem + suffix).lower() for suffix in ("", *TRUTH_SUFFIXES)}
    if len(sample.masks) == 1 and sample.masks[0].stem.lower() in names:
        return replace(sample, masks=(), truths=sample.masks)
    return sample


def pair_truths(
    samples: Iterable[Sample],
    locations: dict[str, tuple[PathParts, str]],
    files: Iterable[tuple[PathParts, File]],
    results: Container[PathParts],
    left_out: LeftOut,
) -> list[Sample]:
    """Gives their truth to the samples of a source that have none; what is truth of one is no image of another.

    Args:
        samples: of the source.
        locations: image -> its folder, and its name without the ending and, of nnU-Net, without the channel.
        files: of the source.
        results: folders that hold results. Of images that were predicted into their own folder the labels are truth.
        left_out: to which images are added that are truth.
    """
    files = [(parts, file) for parts, file in files if not is_in_results(parts[:-1], results)]
    if () in results:  # the source itself
        no_truth = {*RESULT_FOLDERS, *OPTIONAL_FOLDERS} - {"labels"}
        files = [(parts, file) for parts, file in files if parts[0] not in no_truth]
    index = index_files(files)
    paired = []
    for sample in samples:
        if not sample.has_truth:
            folder, stem = locations[str(sample.image)]
            sample = replace(sample, truths=find_truths(index, folder, stem, sample.id))
        paired.append(sample)
    truths = {str(file) for sample in paired for file in sample.truths}
    left_out[LEFT_MASKS] += [sample.image for sample in paired if str(sample.image) in truths]
    return [sample for sample in paired if str(sample.image) not in truths]


def add_predictions(samples: Iterable[Sample], paths: Iterable[Path]) -> list[Sample]:
    """Gives images without truth the labels/ID.tif of folders of results among the sources as truth.

    It leaves out the pictures that Predict_masks.py wrote into these folders, as they are no images.
    """
    samples = list(samples)
    for out in _result_folders(paths):
        samples = [sample for sample in samples if not _lies_in_results(sample.image, [out])]
        for index, sample in enumerate(samples):
            file = out / "labels" / f"{sample.id}.tif"
            if not sample.has_truth and file.is_file():
                samples[index] = replace(sample, truths=(file,))
    return samples


def _result_folders(paths: Iterable[Path]) -> list[Path]:
    """The sources that are folders of results."""
    return [path for path in paths if (path / SOURCE_RECORD).is_file()]


def _lies_in_results(file: File, outs: Sequence[Path]) -> bool:
    """Whether a file is one of those that Predict_masks.py writes into these folders."""
    is_table = file.parent in outs and file.suffix in TABLE_ENDINGS
    names = (*RESULT_FOLDERS, *OPTIONAL_FOLDERS)
    folders = [os.path.join(os.path.abspath(out), name, "") for out in outs for name in names]
    return is_table or os.path.abspath(str(file)).startswith(tuple(folders))


def settle_truths(samples: list[Sample], left_out: LeftOut, paths: Iterable[Path]) -> list[Sample]:
    """Checks that images and truths have their partners, and drops nnU-Net's test images without truth.

    Where the only truth is files of one nucleus, or there is none, nothing needs a partner and nothing is dropped.

    Args:
        samples: of all sources.
        left_out: from which truth and results are removed, and to which the dropped images are added.
        paths: the sources.

    Returns:
        The samples without those that are dropped.

    Raises:
        UserError: images without truth, truth without an image, or an image with truth in several places.
    """
    truths = {str(file) for sample in samples for file in sample.truths}
    outs = _result_folders(paths)
    for reason in (LEFT_MASKS, LEFT_UNREAD):
        others = [file for file in left_out[reason] if str(file) not in truths]
        left_out[reason] = [file for file in others if not _lies_in_results(file, outs)]
    orphans = [file for file in (*left_out[LEFT_MASKS], *left_out[LEFT_UNREAD]) if is_truth(file)]
    for sample in samples:
        check_one_truth(sample)
    if not truths and (not orphans or all(sample.masks for sample in samples)):  # nothing needs a partner
        return samples
    left_out[LEFT_WITHOUT_TRUTH] += [sample.image for sample in samples if _is_unlabelled_test(sample)]
    samples = [sample for sample in samples if not _is_unlabelled_test(sample)]
    paired_sources = {sample.source for sample in samples if sample.truths}
    lacking = [sample for sample in samples if not sample.has_truth]
    lacking = [sample.image for sample in lacking if orphans or sample.source in paired_sources]
    check_partners(lacking, orphans, len(samples))
    return samples


def _is_unlabelled_test(sample: Sample) -> bool:
    return sample.image.parent.name == NNUNET_TEST and not sample.has_truth


def check_one_truth(sample: Sample) -> None:
    """Raises UserError where the truth of an image lies in several places."""
    if len(sample.truths) > 1:
        files = " and ".join(map(str, sample.truths))
        raise UserError(f"{sample.image}: it has more than one truth, {files}; move all but one away")


def check_partners(lacking: Sequence[File], orphans: Sequence[File], count: int) -> None:
    """Raises UserError where images have no truth, or truth has no image.

    Args:
        lacking: image files without truth.
        orphans: truth files without an image.
        count: images in all.
    """
    for file in lacking:
        if NNUNET_FOLDER.fullmatch(file.parent.name) and NNUNET_CHANNEL.fullmatch(file.stem):
            raise UserError(
                f"{file}: in nnU-Net's layout an image has one channel here, NAME_0000.*, and labelsTr/NAME.* beside "
                "it; this one has several channels or no labels; keep the channel of the nuclei, as _0000"
            )
    reasons = []
    if lacking:
        reasons.append(f"{len(lacking)} of {count} images without truth: {format_names(lacking)}")
    if orphans:
        noun = "truth" if len(orphans) == 1 else "truths"
        reasons.append(f"{len(orphans)} {noun} without an image: {format_names(orphans)}")
    if reasons:
        raise UserError(
            f"{(lacking or orphans)[0].parent}: {'; '.join(reasons)}; expected a truth with the name of each image, as "
            "masks/NAME.tif or NAME_masks.tif (an empty picture where there are no nuclei); rename or move the others"
        )


def count_of(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, whose plural has an s where it is not given.

    >>> count_of(1, "image"), count_of(1200, "nucleus", "nuclei")
    ('1 image', '1,200 nuclei')
    """
    return f"1 {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def format_names(files: Sequence[File | str]) -> str:
    """The first names, and how many others there are."""
    names = [Path(str(file)).name for file in files]
    others = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {others} more" if others > 0 else "")
