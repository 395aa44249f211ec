"""Cutting matured loans into what is learned from, calibrated on and judged by.

What belongs here: the cut by time or by outcome, one person in one slice, no copy across slices. What does not: which
loans have matured (`labels.py`) and what is done with a slice (`training.py`).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlops_assets.credit_risk.schema import FeatureSchema
from mlops_assets.credit_risk.spec import Training
from mlops_assets.foundation.errors import UserError

SLICES = ("train", "calibrate", "test")


@dataclass(frozen=True)
class Cut:
    """The slices, and what had to be left out of them.

    Parameters
    ----------
    same_person
        Rows of people whose later application is in a later slice.
    copies
        Rows that equal one of a later slice in every feature.
    from_
        First application of each slice, where they are cut by time.
    """

    slices: Mapping[str, pd.DataFrame]
    same_person: int
    copies: int
    from_: Mapping[str, str]


def by_time(frame: pd.DataFrame, schema: FeatureSchema, settings: Training, *, where: str) -> Cut:
    """Cut so that every application of a slice was made before all of the next one.

    A person who is in several slices stays in the last of them, and so does the content of an application that occurs
    in several: what a model is judged by is complete, and nothing of it was learned from.

    Parameters
    ----------
    frame
        application_id, applicant_id, applied_at, the features, bad.

    Raises
    ------
    UserError
        There are fewer than three different times.
    """
    times = np.sort(frame["applied_at"].to_numpy())
    test = _boundary(times, settings.test_share)
    calibrate = _boundary(times[times < test], settings.calibrate_share / (1 - settings.test_share))
    if not times[0] < calibrate < test:
        raise UserError(
            f"the applications have too few different times ({len(np.unique(times))}) to be cut by them",
            where=where,
            remedy="set training.split to stratified, or deliver the applications with their exact times.",
        )
    at = frame["applied_at"].to_numpy()
    place = np.where(at >= test, 2, np.where(at >= calibrate, 1, 0))
    person = frame["applicant_id"].where(frame["applicant_id"].notna(), frame["application_id"])
    last = pd.Series(place, frame.index).groupby(person.to_numpy()).transform("max").to_numpy()
    same_person = place < last
    content, telling = contents(frame, schema)
    kept = pd.Series(np.where(same_person, -1, place), frame.index)
    latest = kept.groupby(content).transform("max").to_numpy()
    copies = ~same_person & telling & (place < latest)
    place = np.where(same_person | copies, -1, place)
    slices = {name: _sorted(frame[place == number]) for number, name in enumerate(SLICES)}
    first = {"train": slices["train"]["applied_at"].min(), "calibrate": calibrate, "test": test}
    from_ = {name: pd.Timestamp(moment).isoformat() for name, moment in first.items() if not pd.isna(moment)}
    return Cut(slices, int(same_person.sum()), int(copies.sum()), from_)


def _boundary(times: "NDArray[np.datetime64]", share: float) -> np.datetime64:
    """Return the moment from which on the share nearest to ``share`` of the times lies; equal times stay together."""
    if not len(times):
        return np.datetime64("NaT")
    moments, first = np.unique(times, return_index=True)
    after = 1 - first / len(times)
    nearest: np.datetime64 = moments[int(np.argmin(np.abs(after - share)))]
    return nearest


def stratified(frame: pd.DataFrame, schema: FeatureSchema, settings: Training) -> Cut:
    """Cut at random so that all slices have the same share of bad loans, and people and copies stay together.

    The place of a loan depends on its id, the seed and the other loans, not on the order of the rows.
    """
    content, telling = contents(frame, schema)
    person = frame["applicant_id"].where(frame["applicant_id"].notna(), frame["application_id"]).to_numpy()
    group = _connected(person, np.where(telling, content, np.arange(len(frame)).astype(str)))
    ids = frame["application_id"].to_numpy()
    named = pd.DataFrame({"group": group, "id": ids, "bad": frame["bad"].to_numpy()})
    groups = named.groupby("group").agg(first=("id", "min"), bad=("bad", "max"), rows=("id", "size"))
    draw = [hashlib.sha256(f"{settings.seed}:{first}".encode()).hexdigest() for first in groups["first"]]
    groups = groups.assign(draw=draw).sort_values(["bad", "draw"])
    shares = np.cumsum([settings.test_share, settings.calibrate_share])
    places = pd.Series(0, index=groups.index)
    for _, part in groups.groupby("bad"):
        upto = (part["rows"].cumsum() - part["rows"] / 2) / part["rows"].sum()
        places[part.index] = np.where(upto <= shares[0], 2, np.where(upto <= shares[1], 1, 0))
    place = pd.Series(group).map(places).to_numpy()
    return Cut({name: _sorted(frame[place == number]) for number, name in enumerate(SLICES)}, 0, 0, {})


def contents(frame: pd.DataFrame, schema: FeatureSchema) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
    """Return the content of each row, and whether it tells an application from others.

    Rows of which half or more is missing or a special code are alike without being copies: people without a bureau
    file all look the same.
    """
    matrix = schema.matrix(frame)
    hashed = pd.util.hash_pandas_object(matrix, index=False).astype(str).to_numpy(dtype=object)
    known = np.zeros(len(frame), dtype=np.int64)
    for feature in schema.features:
        values = matrix[feature.name]
        known += (values.notna() & ~values.isin(list(feature.special))).to_numpy(dtype=np.int64)
    return hashed, known * 2 > len(schema.features)


def _connected(*keys: NDArray[np.object_]) -> NDArray[np.int64]:
    """Return a number for each row, the same for rows that share any of the keys, directly or through others."""
    group = np.arange(len(keys[0]))
    while True:
        before = group
        for key in keys:
            group = pd.Series(group).groupby(key).transform("min").to_numpy(dtype=np.int64)
        if (group == before).all():
            return group


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["applied_at", "application_id"], ignore_index=True)
