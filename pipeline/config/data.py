"""Knobs: which run, which videos, how they are decoded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.section import PAPER, SAME_WEIGHTS, Mebibytes, Pixels, Seconds, Section, Share, Videos


class RunSection(Section):
    """Which run this is and where its folder lies."""

    name: str = Field("actnetformer", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", json_schema_extra=SAME_WEIGHTS)
    """Name of the run; its folder is ``storage_path/name``. The same name again continues the run."""
    storage_path: str = Field("runs", json_schema_extra=SAME_WEIGHTS)
    """Folder that holds run folders: on several nodes one that they share, or a URI of object storage (s3://, gs://, ...)."""
    staging_path: str | None = Field(None, json_schema_extra=SAME_WEIGHTS)
    """Local folder where runs on object storage are put together between two checkpoints; by default in the system's
    temporary folder. Needs room for ``train.keep_checkpoints`` and one more."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Everything random is derived from (seed, step, video, view)."""


class DataSection(Section):
    """Which videos, which of them are labeled, and how many go into one optimizer step."""

    manifest: str = Field("data/manifest.parquet", json_schema_extra=SAME_WEIGHTS)
    """Parquet manifest written by ``jobs.prepare``: a path or a URI (s3://, gs://, hdfs://, ...)."""
    labels: str | None = Field(None, json_schema_extra=SAME_WEIGHTS)
    """Parquet label subset; by default ``labels.parquet`` beside the manifest."""
    root: str | None = Field(None, json_schema_extra=SAME_WEIGHTS)
    """Folder or URI that relative video paths start from; by default the one stored in the manifest."""
    labeled_per_step: Videos = Field(8, ge=1)
    """B, labeled videos in one optimizer step over all workers: the global batch, independent of their number."""
    unlabeled_per_labeled: int = Field(5, ge=0, json_schema_extra=PAPER)
    """mu, unlabeled videos for each labeled one. The paper's ratio is 1:5. Methods without unlabeled data use 0."""
    decode_size: Pixels = Field(256, ge=16)
    """Side in pixels of the square window that is decoded, at short-side scale; views crop inside it."""
    moments: Literal["shared", "own"] = "shared"
    """Whether both students' clips of a video are centered on the same moment, or each lies at a random one of its own, so
    that the contrast compares different times. The paper's figure shows one clip: shared is choice. It is about windows: with
    ``clip.sampling=segments``, which covers the whole video, only ``shared`` is accepted."""
    match: Literal["count", "span"] = "count"
    """``count``: each clip has its ``clip.frames``, so that a higher ``clip.fps`` sees fewer seconds. ``span``: the auxiliary's
    ``clip.frames`` becomes as many as make it as long as the primary's clip: primary frames / primary fps * auxiliary fps.
    It is about windows: with ``clip.sampling=segments`` only ``count`` is accepted."""
    clips_per_block: Videos = Field(24, ge=1, json_schema_extra=SAME_WEIGHTS)
    """Least videos decoded by one task, but for a run's first ones: larger blocks spread Ray's cost of 20-70 ms a block over
    more clips."""
    blocks_ahead: int = Field(4, ge=1, json_schema_extra=SAME_WEIGHTS)
    """Decoded blocks per worker that may wait for a slow trainer in the object stores; decode tasks pause above. They, two for
    each decode task and up to four on each worker's side are all of the stream's memory. A few ride out a slow video."""
    max_quarantined_share: Share = Field(0.05, ge=0, le=1, json_schema_extra=SAME_WEIGHTS)
    """The run stops when more than this share of the manifest's usable videos failed to decode."""
    isolate_decoder: bool = Field(True, json_schema_extra=SAME_WEIGHTS)
    """Decode in child processes, so that a decoder that hangs, crashes or leaks costs one video and not the run."""
    video_timeout_seconds: Seconds = Field(30.0, gt=0, json_schema_extra=SAME_WEIGHTS)
    """A decoder that needs longer for one video is stopped, and the video replaced; needs ``isolate_decoder``."""
    decoder_memory_mb: Mebibytes = Field(2048.0, ge=256, json_schema_extra=SAME_WEIGHTS)
    """A decoder process that has more MiB for itself after a video is replaced by a fresh one; twice as many stop it."""
    decoded_cache_mb: Mebibytes = Field(0.0, ge=0, json_schema_extra=SAME_WEIGHTS)
    """MiB of decoded videos that each decoding process keeps in memory, so that a small data set is decoded once and not in
    every epoch; the clips are the same. A video takes frames * ``decode_size`` ** 2 * 3 bytes, if it is a square. Videos of a
    variable frame rate or of more than 512 frames are not kept. At most half of ``decoder_memory_mb``."""
    decode_timeout_seconds: Seconds = Field(300.0, gt=0, json_schema_extra=SAME_WEIGHTS)
    """The run stops with a message when no batch arrives for this long, first batch excepted (ten times that). Several times
    ``video_timeout_seconds``, for a block may hold several videos that hang; raise it for storage that stalls for minutes."""

    @model_validator(mode="after")
    def _cache_fits(self) -> DataSection:
        if self.isolate_decoder and self.decoded_cache_mb > self.decoder_memory_mb / 2:
            raise ValueError(
                f"decoded_cache_mb={self.decoded_cache_mb:g} is more than half of decoder_memory_mb="
                f"{self.decoder_memory_mb:g}, at which a decoding process is replaced: lower the one or raise the other"
            )
        return self
