"""A YAML loader that executes nothing, refuses a key given twice, and reads plain numbers only."""

from __future__ import annotations

import re
import reprlib
from typing import Any, cast

import yaml

__all__ = ["UniqueKeyLoader"]


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML would keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # The parent refuses it.
            if key.value in seen:
                problem = f"the key {reprlib.repr(key.value)} a second time"
                raise yaml.constructor.ConstructorError(
                    problem=problem, problem_mark=key.start_mark
                )
            seen.add(key.value)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))

    def construct_plain(self, node: Any) -> Any:
        """A number as it is written; 010 and 1:30, in YAML 1.1 8 and 90, stay text."""
        text = str(self.construct_scalar(node))
        if _PLAIN.fullmatch(text):
            return int(text)
        odd = ":" in text or "_" in text or re.match(r"[-+]?0[0-9xb]", text)
        return text if odd else self.construct_yaml_float(node)


_PLAIN = re.compile(r"[-+]?(0|[1-9][0-9]*)")
for _kind in ("int", "float"):
    UniqueKeyLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", UniqueKeyLoader.construct_plain)
