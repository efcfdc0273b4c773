"""Judges configurations by the schema on standard input, as an editor would: a line for each file, its name and how many faults."""

import json
import re
import sys

import yaml
from jsonschema import Draft202012Validator


class Loader(yaml.SafeLoader):
    """YAML 1.2, where `off` is a word."""


BOOLEAN = "tag:yaml.org,2002:bool"
Loader.yaml_implicit_resolvers = {first: [known for known in several if known[0] != BOOLEAN]
                                  for first, several in yaml.SafeLoader.yaml_implicit_resolvers.items()}
Loader.add_implicit_resolver(BOOLEAN, re.compile("^(true|false)$"), list("tf"))

schema = json.load(sys.stdin)
Draft202012Validator.check_schema(schema)
for name in sys.argv[1:]:
    with open(name) as file:
        # Also the keys of the reference that are commented out.
        text = re.sub("(?m)^( *)#(?=[a-z])", r"\1", file.read())
    faults = list(Draft202012Validator(schema).iter_errors(yaml.load(text, Loader)))
    print(name, len(faults), *("/".join(map(str, fault.path)) for fault in faults))
