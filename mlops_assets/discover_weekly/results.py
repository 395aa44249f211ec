"""What the pages of models, verdicts and playlists show.

What belongs here: results turned into Dagster's materialize results. What does not: how they came about (pipeline.py).
"""

from typing import Any

import dagster as dg
import pandas as pd

from mlops_assets.discover_weekly.judging import Judgement
from mlops_assets.discover_weekly.playlist_batch import PlaylistBatch
from mlops_assets.discover_weekly.rules import Findings
from mlops_assets.foundation import metadata as md
from mlops_assets.foundation import plots
from mlops_assets.foundation.batch import BatchResult
from mlops_assets.foundation.io_managers import Judged
from mlops_assets.foundation.publication import Manifest, Publication


def evaluation_result(judgement: Judgement) -> dg.MaterializeResult[Judged]:
    """Show every contestant with its interval, as numbers, a table and a picture."""
    rows = {name: (m.value, m.low, m.high) for name, m in judgement.headline.items()}
    chart = plots.intervals(
        rows, title=f"{judgement.metric} on held-out listening", axis=f"{judgement.metric}, 95 % interval"
    )
    return dg.MaterializeResult(
        value=Judged(judgement.version, judgement.evidence_sha256),
        metadata={
            "picture": md.picture(chart, judgement.metric),
            "contestants": md.table(judgement.table),
            "gates": md.table(judgement.gates_table),
            "users": judgement.users,
            "evidence_sha256": judgement.evidence_sha256,
            **md.numbers(judgement.plotted),
        },
    )


def playlists_metadata(
    batch: PlaylistBatch, manifest: Manifest, outcome: BatchResult, findings: Findings
) -> dict[str, Any]:
    """Show a batch: counts that plot over periods, the mix of sources, one playlist as a table."""
    example = batch.example(manifest)
    lengths = batch.coverage_history(findings)
    return {
        "dagster/row_count": manifest.rows,
        "users": findings.users,
        "users_per_second": round(findings.users / outcome.seconds, 1) if outcome.computed and outcome.seconds else 0.0,
        "shards_computed": outcome.computed,
        "shards_resumed": outcome.resumed,
        "shards_in_fallback": len(outcome.fallback),
        "shards_quarantined": len(outcome.quarantined),
        "catalogue_coverage": round(findings.coverage(batch.catalogue_size), 4),
        "coverage_over_time": md.picture(plots.sparkline(lengths), "catalogue coverage over time"),
        "model_version": batch.model_version,
        "manifest_sha256": manifest.sha256,
        "sources": md.table(pd.DataFrame(findings.sources.items(), columns=["source", "rows"])),
        "playlist_of_one_user": md.table(example, rows=30),
        **md.numbers({f"rows_from_{source}": count for source, count in findings.sources.items()}),
        **(
            {
                "failed_shards": md.table(
                    pd.DataFrame(
                        [
                            {"shard": r.shard, "status": r.status, "error": r.error}
                            for r in (*outcome.fallback, *outcome.quarantined)
                        ]
                    )
                )
            }
            if outcome.fallback or outcome.quarantined
            else {}
        ),
    }


def publication_result(publication: Publication) -> dg.MaterializeResult[None]:
    """Show what readers see from now on."""
    return dg.MaterializeResult(
        data_version=dg.DataVersion(publication.manifest.sha256),
        metadata={
            "dagster/row_count": publication.rows,
            "published_at": publication.published_at,
            "manifest_sha256": publication.manifest.sha256,
            "previous_manifest_sha256": publication.previous or "none",
            "batch_run_id": publication.run_id,
        },
    )
