"""A ledger record as the Video object of the wire. Pure; says only what the record says."""

from typing import Literal

from engine.presets import PRESETS
from engine.spec import Spec
from service.jobs import Job
from service.schemas import SubjectOut, Timings, Video, VideoError

STATUS: dict[str, Literal["queued", "in_progress", "completed", "failed"]] = {
    "queued": "queued",
    "running": "in_progress",
    "completed": "completed",
    "failed": "failed",
}
MINIATURE_NOTE = (
    "The miniature knows only the drawn world it was trained on; a photo of anything else comes"
    " out as that world's nearest."
)


def video(job: Job) -> Video:
    """The whole answer of GET /v1/videos/{id}."""
    spec = Spec.from_json(job.request["spec"])
    frames = job.request.get("frames", spec.num_frames)  # an extension's, with its source's
    return Video(
        id=job.id,
        model=job.request["model"],
        status=STATUS[job.state],
        progress=job.number("progress"),
        created_at=job.number("created_ms") // 1000,
        completed_at=job.number("finished_ms") // 1000 if job.state == "completed" else None,
        prompt=spec.prompt,
        remixed_from_video_id=job.request.get("remixed_from"),
        seconds=f"{frames / spec.fps:g}",
        size=f"{spec.width}x{spec.height}",
        error=_error(job),
        stage=job.text("stage") or job.state,
        step=job.number("step") if job.state == "running" else None,
        queue_position=job.place if job.state == "queued" else None,
        eta_s=eta_s(job),
        attempts=job.number("attempts"),
        subjects=_subjects(job),
        preview=_preview(job),
        warnings=[*job.request.get("warnings", []), *job.result.get("warnings", [])],
        timings=_timings(job),
        model_digest=job.text("digest"),
        num_frames=frames,
        fps=spec.fps,
        seed=job.result.get("seed", spec.seed),
        priority=job.text("priority") or "normal",
        identity=job.result.get("identity"),
        candidates=job.result.get("candidates", []),
        frames_sha256=job.result.get("frames_sha256"),
        steps=spec.steps,
        solver=spec.solver,
        tier=spec.tier,
        forwards=job.result.get("forwards"),
        guidance=job.request["spec"]["guidance"],
        negative_prompt=spec.negative_prompt,
    )


def warnings_for(spec: Spec, model: str) -> list[str]:
    """What a client should know of this request before it sees the result."""
    notes = []
    usual = PRESETS[model].defaults
    if model == "miniature":
        notes.append(MINIATURE_NOTE)
    if (spec.width, spec.height, spec.num_frames) != (usual.width, usual.height, usual.num_frames):
        notes.append(
            f"Trained at {usual.width}x{usual.height} and {usual.num_frames} frames; other sizes"
            " and lengths work less well."
        )
    if spec.fps != usual.fps:
        notes.append(f"Trained at {usual.fps} frames a second; others play faster or slower.")
    return notes


def eta_s(job: Job) -> float | None:
    """Seconds until the end: by this start's own pace, else by the mean of the last jobs.

    A waiting job waits for what is in hand and for those before it, shared by as many workers as
    are busy now (at least one).
    """
    if job.state == "queued":
        if job.mean_ms is None:
            return None
        before_ms = (job.rest_ms + job.place * job.mean_ms) / max(job.in_hand, 1)
        return round((before_ms + job.mean_ms) / 1000, 1)
    if job.state != "running":
        return None
    elapsed_ms = job.now_ms - job.number("claimed_ms")
    fraction = float(job.text("fraction") or 0)
    if fraction >= 0.1:
        return round(elapsed_ms * (1 - fraction) / fraction / 1000, 1)
    if job.mean_ms is None:
        return None
    return round(max(job.mean_ms - elapsed_ms, 0) / 1000, 1)


def _error(job: Job) -> VideoError | None:
    if job.state != "failed":
        return None
    return VideoError(
        code=job.text("error_code") or "failed",
        message=job.text("error_message") or "The job failed.",
    )


def _subjects(job: Job) -> list[SubjectOut]:
    return [
        SubjectOut(
            name=one["name"],
            reference=f"/v1/videos/{job.id}/references/{one['name']}",
            id=one.get("subject"),
        )
        for one in job.request["references"]
    ]


def _preview(job: Job) -> str | None:
    """Only while it runs: afterwards there is something better."""
    if job.state != "running" or job.text("preview") is None:
        return None
    return f"/v1/videos/{job.id}/content?variant=preview"


def _timings(job: Job) -> Timings:
    created, started = job.number("created_ms"), job.number("started_ms")
    finished = job.number("finished_ms")
    return Timings(
        queued_s=round((started or finished or job.now_ms) - created, -1) / 1000,
        total_s=round(finished - created, -1) / 1000 if finished else None,
        **job.result.get("timings", {}),
    )
