{{ config(materialized='view') }}

select
    track_id,
    nullif(trim(artist_id), '') as artist_id,
    title,
    nullif(trim(lower(tags)), '') as tags,
    nullif(trim(lower(lyrics)), '') as lyrics,
    coalesce(explicit, false) as explicit,
    released,
    -- SE|NO, however the feed spells the list.
    nullif(trim(upper(replace(replace(replace(markets, ' ', ''), ',', '|'), ';', '|'))), '') as markets
from {{ source('raw', 'tracks') }}
