{{ config(materialized='view') }}

-- A play that was skipped counts against the track, so it is told apart here once for all.
select
    user_id,
    track_id,
    listened_at,
    period,
    case when skipped then 0 else plays end as plays,
    case when skipped then 1 else 0 end as skips
from {{ source('raw', 'listens') }}
