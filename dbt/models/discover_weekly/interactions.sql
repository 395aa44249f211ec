-- One row a user, track and period. A period is built again by deleting it first, so a late file or a correction
-- replaces what was there, and an emptied period becomes empty.
{{ config(
    materialized='incremental',
    incremental_strategy='append',
    pre_hook="{% if is_incremental() %}delete from {{ this }} where period >= cast('{{ var('first_period') }}' as date) and period <= cast('{{ var('last_period') }}' as date){% endif %}"
) }}

select
    period,
    user_id,
    track_id,
    cast(sum(plays) as double) as plays,
    cast(sum(skips) as double) as skips,
    max(listened_at) as last_listened_at
from {{ ref('stg_listens') }}
where
    period >= cast('{{ var("first_period") }}' as date)
    and period <= cast('{{ var("last_period") }}' as date)
group by period, user_id, track_id
order by period, user_id, track_id
