"""How a service may be reached, and how much it takes.

What belongs here: names, meanings, bounds and defaults of the settings. What does not: secrets, which come from the
environment, and anything that acts on a setting.
"""

from pydantic import Field

from mlops_assets.foundation.specs import Block

TOKEN_VARIABLE = "MLOPS_ASSETS_SERVICE_TOKENS"  # noqa: S105 - the name of a variable


class ServiceSettings(Block):
    """What a service that answers online listens on, and its limits."""

    host: str = Field("127.0.0.1", description="Address to listen on; any but this machine's own needs tokens.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token_variable: str = Field(
        TOKEN_VARIABLE, description="Environment variable with the callers: name=token,name=token."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Host names that requests may name; without any, what is reached locally answers to local names.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses whose X-Forwarded-For is believed; metrics then need a token everywhere."
    )
    max_body_bytes: int = Field(262_144, ge=1_024, le=67_108_864, description="Largest body that is taken.")
    max_depth: int = Field(32, ge=1, le=200, description="Deepest nesting of a JSON body.")
    rate_per_second: float | None = Field(
        50.0, gt=0, description="Requests a second that one caller may make for long; unlimited when null."
    )
    burst: int = Field(100, ge=1, description="Requests that one caller may make at once.")
    max_clients: int = Field(10_000, ge=1, description="Clients whose requests are counted apart.")
    max_in_flight: int = Field(64, ge=1, description="Requests under way at once; more are told to come again.")
    max_connections: int = Field(512, ge=1, description="Open connections.")
    threads: int = Field(8, ge=1, le=256, description="Threads that work on requests.")
    head_seconds: float = Field(10.0, gt=0, description="Seconds in which the head of a request has to be there.")
    body_seconds: float = Field(10.0, gt=0, description="Seconds in which the body of a request has to be there.")
    request_seconds: float = Field(30.0, gt=0, description="Seconds after which a request is given up.")
    shutdown_seconds: int = Field(20, ge=0, description="Seconds that requests under way have when the service stops.")
