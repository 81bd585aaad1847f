"""The gates as JUnit XML: each gate is a test case, so that CI shows which one failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from mwa_export.parity.result import GateResult, Parity
from mwa_export.report.text import printable


def junit_from_parity(result: Parity) -> str:
    """Return an XML document with one test suite."""
    return junit_from_parities({"": result})


def junit_from_parities(results: Mapping[str, Parity]) -> str:
    """Return an XML document with one test suite per candidate."""
    gates = [gate for result in results.values() for gate in result.gates]
    root = ElementTree.Element("testsuites", _counts(gates))
    for name, result in results.items():
        root.append(_suite(f"recall parity {name}".strip(), result))
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _suite(name: str, result: Parity) -> ElementTree.Element:
    attributes = _counts(result.gates) | {"errors": "0", "timestamp": result.created}
    suite = ElementTree.Element("testsuite", {"name": name, **attributes})
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in (
        ("reference", result.reference.name),
        ("candidate", result.candidate.name),
        ("data", result.data.name),
        ("images", str(result.data.images)),
        ("captions", str(result.data.captions)),
        ("mwa-export", result.version),
    ):
        ElementTree.SubElement(properties, "property", name=key, value=printable(value))
    for gate in result.gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname="parity", name=printable(gate.name), time="0"
        )
        if gate.verdict == "fails":
            ElementTree.SubElement(case, "failure", message=printable(gate.message), type="gate")
        elif gate.verdict == "undecided":
            ElementTree.SubElement(case, "skipped", message=printable(gate.message))
    return suite


def _counts(gates: Sequence[GateResult]) -> dict[str, str]:
    verdicts = [gate.verdict for gate in gates]
    return {
        "tests": str(len(verdicts)),
        "failures": str(verdicts.count("fails")),
        "skipped": str(verdicts.count("undecided")),
    }
