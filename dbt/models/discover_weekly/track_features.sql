select
    tracks.track_id,
    tracks.artist_id,
    tracks.title,
    tracks.tags,
    tracks.lyrics,
    tracks.explicit,
    tracks.released,
    tracks.markets,
    (tracks.tags is not null or tracks.lyrics is not null) as has_text,
    case
        when tracks.artist_id is null then 1
        else count(*) over (partition by tracks.artist_id)
    end as artist_tracks
from {{ ref('stg_tracks') }} as tracks
order by tracks.track_id
