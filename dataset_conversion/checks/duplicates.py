"""Duplicates: the same voxels under two names, the worst of them in training and test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from ._facts import CaseFacts, Data
from ._finding import Finding, error, warning

LEAST_VOXELS = 100  # small masks may be alike by chance


def find(data: Data) -> Iterator[Finding]:
    """Cases with the voxels of another, and label maps that are copies of another case's."""
    by_image: dict[tuple, list[CaseFacts]] = defaultdict(list)
    by_labels: dict[str, list[CaseFacts]] = defaultdict(list)
    for facts in data.cases:
        images = [image for _, image in sorted(facts.images.items())]
        if (
            images
            and not any(image.unreadable for image in images)
            and not all(i.is_constant for i in images)
        ):
            by_image[tuple(image.digest for image in images)].append(facts)
        if sum(region.n_voxels for region in facts.regions.values()) >= LEAST_VOXELS:
            by_labels[facts.labels.digest].append(facts)
    for first, *others in by_image.values():
        for other in others:
            path = other.case.images[min(other.images)]
            twin = first.case.images[min(first.images)]
            if other.case.test != first.case.test:
                yield error(
                    path,
                    f"has the same voxels as {twin}",
                    "A test on training data is none: take one of them out",
                )
            else:
                yield warning(
                    path,
                    f"has the same voxels as {twin}",
                    "If it is the same patient, keep one, or both in one fold (splits_final.json)",
                )
    same_images = {id(facts): twins[0] for twins in by_image.values() for facts in twins}
    for first, *others in by_labels.values():
        for other in others:
            if same_images.get(id(other)) is None or same_images[id(other)] is not same_images.get(id(first)):
                yield warning(
                    other.case.labels,
                    f"has the same voxels as {first.case.labels}, though the images differ",
                    "Was it saved under a wrong name?",
                )
