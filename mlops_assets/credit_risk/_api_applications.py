"""One application as it comes over HTTP: what is documented of it, and what it says.

What belongs here: the model of the request's body, made from the spec, and its reading into the same canonical row that
a batch has. What does not: whether the row meets the contract (`deciding.py`, for a batch and a single one alike), and
HTTP (`api.py`).

Nothing is judged twice: the model documents ranges, codes and levels, and the contract alone judges them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from mlops_assets.credit_risk.applications import canonical_columns
from mlops_assets.credit_risk.contracts import TEXT_CHARACTERS
from mlops_assets.credit_risk.spec import Categorical, Numeric, Spec
from mlops_assets.foundation.contracts import closest
from mlops_assets.foundation.files import canonical_json
from mlops_assets.foundation.serving import Detail, Refused

FEATURES = "features"

_EXACT = 2.0**53
_TEXTS = {
    "application_id": "The application; the same id with the same content is decided once.",
    "applicant_id": "Who applies, where that is known.",
    "applied_at": "When it was made, ISO 8601; without a zone it is UTC. The moment of the request when left out.",
    "code_list_version": "Version of the code lists that the application was written with.",
}


@dataclass(frozen=True)
class Application:
    """An application that was read: its canonical row, with ``applied_at`` None where the moment of its request counts.

    The row is kept whole, with None for what was not said, as the row of a batch is. `asked` is by whom and in which
    request.
    """

    application_id: str
    row: Mapping[str, Any]
    asked: Mapping[str, str] = field(default_factory=dict)

    def payload(self, applied_at: str | None = None) -> str:
        """Return the row as canonical JSON, with a time where it has none."""
        row = dict(self.row)
        if row.get("applied_at") is None and applied_at is not None:
            row["applied_at"] = applied_at
        return canonical_json(row).decode()


def application_model(spec: Spec) -> type[BaseModel]:
    """Return the model of a request's body: it documents the application, and takes whatever is an object.

    Further keys are kept, so that `read` can name all that is wrong at once and tell a protected attribute from a
    misspelt name.
    """
    features = _model(
        "Features",
        {feature.name: _schema_of(feature) for feature in spec.declared},
        [feature.name for feature in spec.declared if not feature.nullable],
        "The features, by their names.",
    )
    texts = {name: _TEXTS[name] for name in _own(spec)}
    required = [name for name in ("application_id", "code_list_version") if name in texts]
    schemas = {name: _text_schema(text, optional=name not in required) for name, text in texts.items()}
    schemas["applied_at"]["format"] = "date-time"
    return _model("Application", schemas, [*required, FEATURES], "One application.", features)


def read(spec: Spec, body: BaseModel) -> Application:
    """Return what a request's body says.

    Raises
    ------
    Refused
        Status 422: a protected attribute, a name that is unknown, a value that is no single one, or no id. All of them
        are named; the value of what nobody asked for is not repeated.
    """
    given = body.model_dump(by_alias=True, exclude_unset=True)
    own = _own(spec)
    problems = [] if FEATURES in given else [Detail(FEATURES, "is missing", "give the features of the application.")]
    features = given.pop(FEATURES, {})
    problems += [*_unknown(spec, given, own, ""), *_unknown(spec, features, spec.features, f"{FEATURES}.")]
    row: dict[str, Any] = {}
    for name in dict.fromkeys((*own, *canonical_columns(spec))):
        place, values = ("", given) if name in own else (f"{FEATURES}.", features)
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            problems.append(_no_value(place + name, value))
        else:
            row[name] = _number(value) if isinstance(value, float) else value
    application = "" if row.get("application_id") is None else str(row["application_id"]).strip()
    if "application_id" in row and not application:
        problems.insert(0, Detail("application_id", "is missing", "give the application's id."))
    if problems:
        raise refused(problems)
    return Application(application, {**row, "application_id": application})


def broken(spec: Spec, found: Iterable[Mapping[str, Any]]) -> Refused:
    """Return the answer to an application that breaks rules of the data."""
    own = _own(spec)
    details = []
    for each in found:
        column, rule, bound = str(each["column"]), str(each["rule"]), str(each["bound"])
        place = column if column in own else f"{FEATURES}.{column}"
        if rule == "missing":
            details.append(Detail(place, "is missing", "give a value."))
        else:
            value = "nothing" if each["value"] is None else repr(each["value"])
            details.append(Detail(place, f"is {value}, which breaks the rule {rule}", f"it has to be {bound}."))
    return refused(details)


def refused(details: list[Detail]) -> Refused:
    """Return the answer to an application that cannot be decided on."""
    message = "The application cannot be decided on; nothing was recorded."
    return Refused(422, "invalid_application", message, details=details)


def _own(spec: Spec) -> tuple[str, ...]:
    """Return the fields beside the features."""
    names = ["application_id", "applicant_id", "applied_at"]
    return (*names, "code_list_version") if spec.data.code_list_version is not None else tuple(names)


def _unknown(spec: Spec, given: Mapping[str, Any], known: Iterable[str], place: str) -> list[Detail]:
    known = tuple(known)
    details = []
    for name in given:
        if name in known:
            continue
        if name in spec.protected_names:
            problem = "is a protected attribute, which must not reach a decision"
            details.append(Detail(place + _named(name), problem, "leave it out."))
        elif name in spec.features:
            details.append(Detail(_named(name), "is a feature", f"put it into {FEATURES}."))
        else:
            guess = closest(name, known)
            remedy = f"leave it out, or write {guess!r} if that is meant." if guess else "leave it out."
            details.append(Detail(place + _named(name), "is not known here", remedy))
    return details


def _named(name: str) -> str:
    return name if name.isprintable() and len(name) <= 80 else f"{name[:60]!a}…"


def _no_value(place: str, value: Any) -> Detail:
    kinds: Mapping[type, str] = {bool: "true or false", list: "a list", dict: "an object"}
    return Detail(place, f"is {kinds.get(type(value), 'no value')}", "send a number, a text or null.")


def _number(value: float) -> float | int:
    """Return 5.0 as 5: the same content in another notation is no other application."""
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _model(
    name: str,
    schemas: Mapping[str, Mapping[str, Any]],
    required: list[str],
    text: str,
    features: type[BaseModel] | None = None,
) -> type[BaseModel]:
    # Fields go by numbers and features by aliases: a feature may be called "copy" or "model_config".
    fields: dict[str, Any] = {
        f"field_{at}": (Annotated[Any, WithJsonSchema(dict(schema))], Field(default_factory=_nothing, alias=each))
        for at, (each, schema) in enumerate(schemas.items())
    }
    if features is not None:
        fields["field_features"] = (features, Field(default_factory=_nothing, alias=FEATURES))
    shown: dict[str, Any] = {"additionalProperties": False, "required": required, "description": text}
    config = ConfigDict(extra="allow", json_schema_extra=shown)
    return create_model(name, __config__=config, **fields)


def _nothing() -> None:
    """Be the default that no documentation shows: what was left out is told apart by its absence."""


def _text_schema(text: str, *, optional: bool) -> dict[str, Any]:
    kind: Any = ["string", "null"] if optional else "string"
    return {"description": text, "type": kind, "maxLength": TEXT_CHARACTERS}


def _schema_of(feature: Numeric | Categorical) -> dict[str, Any]:
    choices: list[dict[str, Any]]
    if isinstance(feature, Numeric):
        bounds = {"minimum": feature.low, "maximum": feature.high}
        choices = [{"type": "number", **{word: _number(at) for word, at in bounds.items() if at is not None}}]
        choices += [{"const": _number(code), "description": text} for code, text in feature.special.items()]
        choices += [{"const": text, "description": f"stands for {value}"} for text, value in feature.replace.items()]
    else:
        choices = [{"type": "string", "maxLength": TEXT_CHARACTERS}]
        if feature.levels:
            choices[0]["examples"] = list(feature.levels)
            choices[0]["description"] = "One of the examples; a human decides on what the model has never seen."
    if feature.nullable:
        choices.append({"type": "null"})
    shown = {"title": feature.name, "description": feature.label or feature.name.replace("_", " ")}
    return {**shown, **choices[0]} if len(choices) == 1 else {**shown, "anyOf": choices}
