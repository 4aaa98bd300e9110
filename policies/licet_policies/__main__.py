"""``python -m licet_policies`` writes ``schema.cedarschema`` anew from ``schema.json``, in the source tree."""

from pathlib import Path

from licet_policies.schema import generate_text, load_schema

if __name__ == "__main__":
    Path(__file__).with_name("schema.cedarschema").write_text(generate_text(load_schema()), "utf-8")
