"""Values that a JSON schema describes, with a taste for the ends of every range."""

from __future__ import annotations

import random
from typing import Any

TEXTS = ["", "a", " it was", "🙂", "é\u0301", "\ud800", "\0", "<|endoftext|>", "a" * 300, "\n", "[0-9]+", "1"]
NUMBERS = [0, 1, -1, 2, 3, 0.5, 1e-9, -0.0, 64, 65, 300, 10**6, 2**31, 2**63, 10**30, 1e308]


class SchemaValues:
    """Makes values of the schemas of an OpenAPI document.

    Args:
        document: the document; references in a schema point into it.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    def make(self, schema: dict[str, Any], chance: random.Random, depth: int = 6) -> Any:
        """Return a value of a schema; a part that the schema does not limit may be anything."""
        if "$ref" in schema:
            target: Any = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            return self.make(target, chance, depth)
        if "anyOf" in schema:
            return self.make(chance.choice(schema["anyOf"]), chance, depth)
        if "const" in schema or "enum" in schema:
            return chance.choice(schema.get("enum", [schema.get("const")]))
        match schema.get("type"):
            case "object":
                return self._object(schema, chance, depth - 1)
            case "array":
                lowest = schema.get("minItems", 0)
                count = chance.choice([lowest, lowest, lowest + 1, min(schema.get("maxItems", 9), 9)])
                return [self.make(schema.get("items", {}), chance, depth - 1) for _ in range(count)]
            case "string":
                shortest, longest = schema.get("minLength", 0), schema.get("maxLength", 400)
                return chance.choice([text for text in TEXTS if shortest <= len(text) <= longest])
            case "integer" | "number" as kind:
                return _number(schema, chance, kind)
            case "boolean":
                return chance.random() < 0.5
            case "null":
                return None
        return self._anything(chance, depth)

    def _object(self, schema: dict[str, Any], chance: random.Random, depth: int) -> dict[str, Any]:
        known = schema.get("properties", {})
        wanted = set(schema.get("required", ())) | {name for name in known if chance.random() < 0.25}
        found = {name: self.make(known[name], chance, depth) for name in sorted(wanted)}
        further = schema.get("additionalProperties", True)
        if further and not known:
            part = further if isinstance(further, dict) else {}
            names = chance.sample(["0", "40", "304", "-1", "type", "x"], chance.randrange(4))
            found |= {name: self.make(part, chance, depth) for name in names}
        return found

    def _anything(self, chance: random.Random, depth: int) -> Any:
        kinds = ["string", "number", "boolean", "null", *(["object", "array"] if depth > 0 else [])]
        return self.make({"type": chance.choice(kinds)}, chance, depth - 1)


def _number(schema: dict[str, Any], chance: random.Random, kind: str) -> float:
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", -(10**30)))
    highest = schema.get("maximum", schema.get("exclusiveMaximum", 10**30))
    numbers = [value for value in [*NUMBERS, lowest, highest] if lowest <= value <= highest]
    number = chance.choice(numbers)
    return int(number) if kind == "integer" else number
