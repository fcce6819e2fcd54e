"""decide() is pure, so its truth table is tested whole."""

from __future__ import annotations

import itertools
from datetime import date
from typing import Any

import pytest

from pipeline.config import Policy, Waiver
from pipeline.findings import Check, Finding, Outcome, Severity
from pipeline.policy import Evidence, decide, needs_repair
from pipeline.results import Attack, Divergence, Hypothesis, Measurement, Parity, Rate
from pipeline.verdict import Verdict

POLICY = Policy(max_asr=0.10, max_accuracy_drop=0.03, min_accuracy=0.5, min_images=50)


def measured(
    *,
    acc: int = 90,
    asr: int | None = 5,
    answered: int = 10,
    total: int = 100,
    changed: int = 100,
    commonest: int = 12,
    repeated: int = 64,
    improbable: int = 0,
    worst: int | None = 9,
) -> Measurement:
    """worst: right images of class 3, of 10; None: there is no image of it."""
    attacks = (
        [] if asr is None else [Attack(name="t", kind="known", target=2, asr=Rate.of(asr, 100), ra=Rate.of(100 - asr, 100), changed=Rate.of(changed, 100))]
    )
    by_class = [Rate.of(9, 10)] * 3 + [None if worst is None else Rate.of(worst, 10)] + [Rate.of(9, 10)] * 6
    return Measurement(
        clean=Rate.of(acc, total),
        attacks=attacks,
        classes=10,
        answered=answered,
        commonest=Rate.of(commonest, 100),
        by_class=by_class,
        repeated=Rate.of(repeated, 64),
        improbable=improbable,
        provider="CPUExecutionProvider",
    )


ALL = frozenset(range(10))


GOOD_PARITY = Parity(max_relative_difference=1e-6, label_agreement=Rate.of(64, 64))
BAD_PARITY = Parity(
    max_relative_difference=0.5,
    label_agreement=Rate.of(60, 64),
    first_divergence=Divergence(node="conv", operator="Conv", onnxruntime=1.0, torch=2.0),
)
HIGH = Finding(rule="graph.gate", severity=Severity.HIGH, message="a gate", where="n3")


def suspicion() -> Hypothesis:
    reached = Rate.of(99, 100)
    says = {
        "kind": "patch",
        "target": 2,
        "text": "patch to class 2",
        "aim": "to class 2",
        "size": 4.0,
        "unit": "px",
        "share": 0.004,
        "outlier": 7.0,
        "score": 0.98,
    }
    return Hypothesis(**says, reached=reached, trigger={"kind": "patch"})


CLEAN, BACKDOORED = measured(asr=5), measured(asr=99)
REPAIRED, STILL_BAD, COSTLY = measured(acc=88), measured(acc=88, asr=50), measured(acc=80)
ERRORED = Check(name="file.x", outcome=Outcome.ERRORED, note="KeyError")


UNSOUND = {
    "constant": {"answered": 1},
    "near-constant": {"commonest": 95},
    "unrepeatable": {"repeated": 63},
    "no probabilities": {"improbable": 1},
    "no effect": {"changed": 0},
}


SUSPECTED = {
    "nothing": [],
    "a trigger": [suspicion()],
}


def expected(*, finding: str, broken: bool, submitted: str, suspected: str, repair: str, searched: bool) -> Verdict:
    """The table in words, written apart from the code."""
    if finding == "stays" or (finding == "cut out" and repair == "none"):
        return Verdict.REJECT
    bad = submitted == "backdoored" or suspected != "nothing" or finding == "cut out"
    if bad and repair in ("fails", "costs too much"):
        return Verdict.REJECT
    if broken:
        return Verdict.INCONCLUSIVE
    if bad:
        return Verdict.REPAIRED if repair == "passes" else Verdict.REJECT
    return Verdict.ACCEPT if searched else Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("finding", "broken", "submitted", "suspected", "repair", "searched"),
    list(
        itertools.product(
            ("none", "stays", "cut out"),
            (None, "stage", "check", "parity", "few", *UNSOUND),
            ("clean", "backdoored"),
            tuple(SUSPECTED),
            ("none", "passes", "fails", "costs too much"),
            (False, True),
        )
    ),
)
def test_truth_table(finding: str, broken: str | None, submitted: str, suspected: str, repair: str, searched: bool) -> None:
    before = {"clean": {"asr": 5}, "backdoored": {"asr": 99}}[submitted]
    before |= UNSOUND.get(broken or "", {})
    verdict, reasons = decide(
        Evidence(
            findings=[] if finding == "none" else [HIGH],
            remaining=[] if finding == "cut out" else None,
            checks=[ERRORED] if broken == "check" else [],
            failures={"purify": "the purify stage was killed by signal 9 (SIGKILL)"} if broken == "stage" else {},
            submitted=measured(**before),
            parity=BAD_PARITY if broken == "parity" else GOOD_PARITY,
            searched=searched,
            suspected=SUSPECTED[suspected],
            calibrated=ALL,
            purified={"none": None, "passes": REPAIRED, "fails": STILL_BAD, "costs too much": COSTLY}[repair],
        ),
        POLICY.model_copy(update={"min_images": 500}) if broken == "few" else POLICY,
    )
    repair_counts = repair if submitted == "backdoored" or suspected != "nothing" or finding == "cut out" else "none"
    assert verdict == expected(
        finding=finding, broken=broken is not None, submitted=submitted, suspected=suspected, repair=repair_counts, searched=searched
    )  # fmt: skip
    assert reasons, "a verdict without a reason convinces nobody"
    assert all(reason.text.strip() for reason in reasons)


def test_nothing_missing_is_accepted() -> None:
    assert decide(Evidence(), POLICY)[0] == Verdict.INCONCLUSIVE
    assert decide(Evidence(submitted=CLEAN, parity=GOOD_PARITY), POLICY)[0] == Verdict.INCONCLUSIVE
    accepted, _ = decide(Evidence(submitted=CLEAN, parity=GOOD_PARITY, searched=True, calibrated=ALL), POLICY)
    assert accepted == Verdict.ACCEPT
    skipped = Check(name="file.x", outcome=Outcome.SKIPPED, note="not asked for")
    assert decide(Evidence(submitted=CLEAN, parity=GOOD_PARITY, searched=True, calibrated=ALL, checks=[skipped]), POLICY)[0] == Verdict.INCONCLUSIVE


def test_a_killed_stage_is_named_with_its_signal() -> None:
    _, reasons = decide(Evidence(submitted=BACKDOORED, failures={"purify": "the purify stage was killed by signal 9 (SIGKILL)"}), POLICY)
    assert any(reason.code == "purify.failed" and "SIGKILL" in reason.text for reason in reasons)


def test_parity_names_the_first_node() -> None:
    _, reasons = decide(Evidence(submitted=CLEAN, parity=BAD_PARITY), POLICY)
    (text,) = [reason.text for reason in reasons if reason.code == "import.parity"]
    assert "Conv" in text and "conv" in text


def test_a_search_that_suspects_a_class_keeps_from_accept() -> None:
    assert decide(Evidence(submitted=CLEAN, parity=GOOD_PARITY, searched=True, calibrated=ALL, suspected=SUSPECTED["a trigger"]), POLICY)[0] == Verdict.REJECT


def test_accuracy_below_the_policy_is_no_accept() -> None:
    assert decide(Evidence(submitted=measured(acc=40), parity=GOOD_PARITY, searched=True, calibrated=ALL), POLICY)[0] == Verdict.REJECT


@pytest.mark.parametrize(("asr", "wanted"), [(0, False), (10, False), (11, True), (100, True)])
def test_needs_repair_at_the_limit(asr: int, wanted: bool) -> None:
    assert needs_repair(measured(asr=asr), POLICY) is wanted


def test_purified_is_judged_by_its_own_drop_only() -> None:
    before, after = measured(acc=90, asr=99), measured(acc=87)
    assert decide(Evidence(submitted=before, parity=GOOD_PARITY, purified=after), POLICY)[0] == Verdict.REPAIRED
    assert decide(Evidence(submitted=before, parity=GOOD_PARITY, purified=measured(acc=86)), POLICY)[0] == Verdict.REJECT


@pytest.mark.parametrize(
    ("worst", "allowed", "wanted"), [(9, 0.2, Verdict.REPAIRED), (7, 0.2, Verdict.REPAIRED), (6, 0.2, Verdict.REJECT), (0, None, Verdict.REPAIRED)]
)
def test_the_worst_class_of_a_repair(worst: int, allowed: float | None, wanted: Verdict) -> None:
    verdict, reasons = decide(
        Evidence(submitted=BACKDOORED, parity=GOOD_PARITY, purified=measured(acc=89, worst=worst)), POLICY.model_copy(update={"max_class_drop": allowed})
    )
    assert verdict == wanted
    assert [reason.text for reason in reasons if reason.code == "purified.class-drop"] == (
        ["The repair costs 30.0 points of accuracy on class 3; 20 are allowed on any."] if wanted == Verdict.REJECT else []
    )


@pytest.mark.parametrize("evidence", [{"submitted": measured(worst=None), "calibrated": ALL}, {"submitted": CLEAN, "calibrated": ALL - {3}}])
def test_a_class_without_images_keeps_from_accept(evidence: dict[str, Any]) -> None:
    verdict, reasons = decide(Evidence(parity=GOOD_PARITY, searched=True, **evidence), POLICY)
    assert verdict == Verdict.INCONCLUSIVE
    (reason,) = reasons
    assert reason.code.endswith(".missing-classes") and "of class 3:" in reason.text


def test_severity_from_which_findings_reject() -> None:
    medium = HIGH.model_copy(update={"severity": Severity.MEDIUM})
    for reject, findings, wanted in (("high", [medium], Verdict.ACCEPT), ("medium", [medium], Verdict.REJECT), ("critical", [HIGH], Verdict.ACCEPT)):
        policy = POLICY.model_copy(update={"reject": Severity(reject)})
        assert decide(Evidence(submitted=CLEAN, parity=GOOD_PARITY, searched=True, calibrated=ALL, findings=findings), policy)[0] == wanted


@pytest.mark.parametrize(
    ("rule", "where", "day", "verdict"),
    [
        ("graph.gate", None, 1, Verdict.ACCEPT),
        ("graph.gate", "n3", 2, Verdict.ACCEPT),
        ("graph.gate", "n3", 3, Verdict.REJECT),
        ("graph.gate", "n4", 1, Verdict.REJECT),
        ("graph.other", None, 1, Verdict.REJECT),
    ],
)
def test_a_waiver_holds_for_its_finding_until_its_day(rule: str, where: str | None, day: int, verdict: Verdict) -> None:
    waiver = Waiver(rule=rule, where=where, owner="security@example.org", expires=date(2026, 3, 2), why="seen by hand")
    policy = POLICY.model_copy(update={"waivers": [waiver]})
    evidence = Evidence(submitted=CLEAN, parity=GOOD_PARITY, searched=True, calibrated=ALL, findings=[HIGH], today=date(2026, 3, day))
    found, reasons = decide(evidence, policy)
    assert found == verdict
    texts = " ".join(reason.text for reason in reasons)
    assert ("waived by security@example.org until 2026-03-02: seen by hand" in texts) == (verdict == Verdict.ACCEPT)
    assert ("expired on 2026-03-02" in texts) == (day == 3)


def test_a_waiver_is_of_a_finding_and_of_nothing_else() -> None:
    """Neither what a trigger does nor what was not looked at can be waived."""
    waivers = [Waiver(rule=rule, owner="me", expires=date.max, why="no") for rule in ("submitted.asr", "detect.absent", "purify.not-done")]
    policy = POLICY.model_copy(update={"waivers": waivers})
    assert decide(Evidence(submitted=BACKDOORED, parity=GOOD_PARITY), policy)[0] == Verdict.REJECT
    assert decide(Evidence(submitted=CLEAN, parity=GOOD_PARITY, calibrated=ALL), policy)[0] == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("untriggered", "said"), [(Rate.of(9, 100), " (9.0 % go there without it);"), (None, " in the submitted file;")])
def test_a_reason_says_what_goes_there_without_the_trigger(untriggered: Rate | None, said: str) -> None:
    (attack,) = BACKDOORED.attacks
    submitted = BACKDOORED.model_copy(update={"attacks": [attack.model_copy(update={"untriggered": untriggered})]})
    _, reasons = decide(Evidence(submitted=submitted, parity=GOOD_PARITY, calibrated=ALL), POLICY)
    assert [said in reason.text for reason in reasons if reason.code == "submitted.asr"] == [True]


def test_a_reason_says_what_it_is_about_and_no_figure() -> None:
    waiver = Waiver(rule="graph.gate", owner="ann", expires=date(2030, 1, 1), why="known", where="n4")
    policy = POLICY.model_copy(update={"waivers": [waiver]})
    evidence = Evidence(
        findings=[HIGH, HIGH.model_copy(update={"where": "n4"})],
        checks=[ERRORED],
        failures={"write-back": "the stage ran out of time"},
        submitted=BACKDOORED,
        suspected=[suspicion()],
        purified=STILL_BAD,
        calibrated=ALL,
        today=date(2026, 1, 1),
    )
    _, reasons = decide(evidence, policy)
    about = {reason.code: reason.about for reason in reasons}
    assert about["graph.gate"] == "n3"
    assert about["finding.waived"] == "graph.gate"
    assert about["file.x.errored"] == "file.x"
    assert about["write-back.failed"] == "write-back"
    assert about["submitted.asr"] == about["purified.asr"] == "t"
    assert about["detect.suspected"] == "patch to class 2"


@pytest.mark.parametrize(
    ("verdict", "accept_repaired", "code"),
    [("ACCEPT", False, 0), ("REPAIRED", False, 1), ("REPAIRED", True, 0), ("REJECT", True, 1), ("INCONCLUSIVE", True, 3)],
)
def test_exit_codes(verdict: str, accept_repaired: bool, code: int) -> None:
    assert Verdict(verdict).exit_code(accept_repaired=accept_repaired) == code
