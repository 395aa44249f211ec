{{ config(materialized='view') }}

select
    user_id,
    nullif(trim(upper(market)), '') as market,
    coalesce(allow_explicit, true) as allow_explicit,
    joined
from {{ source('raw', 'users') }}
