"""Core: vLLM's engine core, scheduler and configuration from inside, run with 0.32, and in part with 0.33.

Of 0.33 its Python ran over 0.32's CPU kernels; no build of it did (docs/development.md says which tests).

With `drafted`, `naming` and `processes` it is all that depends on vLLM's internals. `engine` runs it, `options`
asks it for vLLM's own configuration, and vLLM's workers import it in whatever process they are.

Three things have no public interface. Taking back tokens of a resumable request is a method of a subclass of
the scheduler, named and meant like `truncate_session`, which is being discussed for vLLM itself. The V1 model
runner forgets that an extended request wants its tokens scored, so it is reminded; the V2 runner adds an
extended request from scratch, scores included, and needs no reminder. And the engine core is stepped in the
caller's thread: vLLM's asynchronous front end costs milliseconds a token.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import vllm
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.distributed import cleanup_dist_env_and_memory, get_pp_group
from vllm.engine.arg_utils import EngineArgs
from vllm.envs import disable_envs_cache
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams
from vllm.utils.cpu_resource_utils import get_visible_memory_node
from vllm.v1.core.kv_cache_utils import get_kv_cache_groups, resolve_dcp_kv_block_size
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, SlidingWindowManager
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec, MambaSpec
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.request import Request, RequestStatus

from alignment.errors import ConfigError
from fusion.members.engine import DECODING_TOKENS
from fusion.members.topk import best_of_row
from fusion.members.vllm.drafted import wrap_scoring
from fusion.members.vllm.naming import wrap_sampler
from fusion.members.vllm.processes import reading_classes_here, starting, told_why

TESTED = ((0, 32), (0, 34))
"""From the first version to below the second: those that this file was tried with."""

MEMORY_BOUND_TOKENS = 4
"""Tokens up to which a step on a CPU waits for its memory more than for its cores."""

_alive = 0  # engine cores of this process, which share vLLM's process groups
_coming_or_going = threading.Lock()  # one at a time


def require_tested() -> None:
    """Raise ConfigError for a vLLM that this file was not written for."""
    low, high = (".".join(map(str, version)) for version in TESTED)
    found = vllm.__version__
    if not TESTED[0] <= vllm.__version_tuple__[:2] < TESTED[1]:
        raise ConfigError(
            f"vLLM {found} is installed, Tutti was tried with {low} to below {high}; install vllm=={low}.*."
        )


class SessionScheduler(Scheduler):  # type: ignore[misc]
    """vLLM's scheduler, with sessions that can be shortened and prompts that share a step fairly."""

    def truncate_session(self, request_id: str, keep: int) -> bool:
        """Forget all but the first `keep` tokens (at least 1) of a session that waits for its next part.

        False, and nothing changed, where that cannot be done in place: a block to be written is another
        request's too, a layer keeps a state instead of tokens, or a sliding window has moved on and what it
        would need again is gone.
        """
        session = self.requests[request_id]
        assert session.status == RequestStatus.WAITING_FOR_STREAMING_REQ
        if keep >= session.num_computed_tokens:
            return True
        managers = self.kv_cache_manager.coordinator.single_type_managers
        if not all(_can_shorten(manager, request_id, keep) for manager in managers):
            return False
        for manager in managers:
            # These blocks are overwritten next: the prefix cache must not find the old text in them any more.
            first = keep // manager.block_size
            blocks = manager.req_to_blocks[request_id]
            manager.block_pool.evict_blocks({block.block_id for block in blocks[first:]})
            manager.num_cached_block[request_id] = min(manager.num_cached_block.get(request_id, 0), first)
        # One more stays, as a stand-in for the sampled token that vLLM drops when the next part comes.
        del session._all_token_ids[keep + 1 :]
        del session.prompt_token_ids[keep:]
        del session.block_hashes[keep // self.hash_block_size :]
        session._output_token_ids.clear()
        session.num_prompt_tokens = len(session.prompt_token_ids)
        session.num_computed_tokens = keep
        return True

    def forget(self, request_id: str) -> None:
        """Remove this request's blocks from the prefix cache: their content is not to be trusted."""
        for blocks in self.kv_cache_manager.get_block_ids(request_id):
            self.kv_cache_manager.evict_blocks(set(blocks))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """As vLLM's, but prompts in progress leave room in the step for all sequences that decode.

        A prompt in progress counts as running and is served first, which would stall sessions: each of their
        tokens comes as a request that waits.
        """
        left = [request.num_tokens - request.num_computed_tokens for request in self.running]
        left += [
            request.num_tokens - request.num_computed_tokens
            for request in self.kv_holding_waiting
            if request.status == RequestStatus.WAITING
        ]
        decoding = sum(tokens for tokens in left if tokens <= DECODING_TOKENS)
        prompts = sum(tokens > DECODING_TOKENS for tokens in left)
        room = (self.max_num_scheduled_tokens - decoding) // max(1, prompts)
        self.scheduler_config.long_prefill_token_threshold = max(DECODING_TOKENS, room)
        return super().schedule(throttle_prefills)


def _can_shorten(manager: Any, request_id: str, keep: int) -> bool:
    """Return whether this group's cache of a request can be shortened to `keep` tokens in place."""
    if type(manager) not in (FullAttentionManager, SlidingWindowManager):
        return False
    blocks, size = manager.req_to_blocks[request_id], manager.block_size
    seen = max(0, manager.get_num_skipped_tokens(keep)) // size
    written = blocks[keep // size :]
    return not any(block.is_null for block in blocks[seen:]) and all(block.ref_cnt == 1 for block in written)


class SessionWorker:
    """Mixed into vLLM's workers (`worker_extension_cls`), in whatever process they are."""

    device: torch.device
    model_runner: Any

    def score_extensions(self, request_ids: list[str], count: int) -> None:
        """Have the V1 runner return the `count` best for all tokens that are about to extend these requests."""
        for request_id in request_ids:
            self.model_runner.num_prompt_logprobs[request_id] = count
            self.model_runner.requests[request_id].in_progress_prompt_logprobs_cpu = None

    def name_ids(self) -> None:
        """See `fusion.members.vllm.naming` and `drafted`."""
        if multiprocessing.parent_process() is not None:
            # A signal to the whole group is for the server, which lets requests finish; vLLM's own worker leaves.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.kept_rows: dict[int, torch.Tensor] = {}
        wrap_sampler(self.model_runner, self.kept_rows)
        wrap_scoring(self.model_runner)

    def look(self, asked: list[tuple[int, list[int]]]) -> list[NDArray[np.float32] | None]:
        """See `Core.look`."""
        found: list[NDArray[np.float32] | None] = []
        for number, ids in asked:
            row = self.kept_rows.get(number)
            found.append(None if row is None else row[torch.tensor(ids, device=row.device)].cpu().numpy())
        return found

    def drop_rows(self, numbers: list[int]) -> None:
        """See `Core.drop_rows`."""
        for number in numbers:
            self.kept_rows.pop(number, None)

    def adapt_to_cpu(self) -> None:
        """Add what the V1 runner lacks on a CPU, and replace what is slow there."""
        if self.device.type != "cpu":
            return
        runner = self.model_runner
        runner.requests = _SeededRequests(runner.requests)
        runner.sampler.gather_logprobs = _gather
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            # Where a stage's input arrives is made by a warm-up, which a CPU that does not compile leaves out.
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=self.device
            )


def _gather(logprobs: torch.Tensor, count: int, token_ids: torch.Tensor) -> LogprobsTensors:
    """As the sampler's `gather_logprobs`, in a quarter of its time; ranks, which are not read here, stay 0.

    The sampler's counts ranks in a kernel that it compiles when it is first used, in the midst of a step.
    """
    given = logprobs.gather(1, token_ids[:, None])
    rows = logprobs.numpy()
    if np.isfinite(rows.max()) and count:
        best = torch.from_numpy(np.stack([best_of_row(row, count) for row in rows]))
    else:
        best = torch.topk(logprobs, count, dim=1).indices.int()
    ids = torch.cat([token_ids[:, None].int(), best], dim=1)
    told = torch.cat([given, logprobs.gather(1, best.long())], dim=1)
    return LogprobsTensors(ids, told, torch.zeros(len(ids), dtype=torch.int32))


class _SeededRequests(dict[str, Any]):
    """The V1 runner's requests, with generators that can take draws back; those of a CPU have no offset."""

    def __setitem__(self, request_id: str, request: Any) -> None:
        if request.generator is not None:
            seed = request.generator.initial_seed()
            request.generator = _RewoundGenerator()
            request.generator.manual_seed(seed)
        super().__setitem__(request_id, request)


class _RewoundGenerator(torch.Generator):
    """A generator whose rewind resets it to the seed: vLLM takes draws back only before the first that counts."""

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        return self.manual_seed(self.initial_seed())


def engine_config(arguments: dict[str, Any]) -> VllmConfig:
    """Return vLLM's configuration for these arguments of its `EngineArgs`. Raises whatever vLLM raises."""
    arguments = {
        "async_scheduling": False,  # a shortened session must not have a step in flight
        "disable_log_stats": True,
        "logprobs_mode": "raw_logprobs",
        "scheduler_cls": SessionScheduler,
        "skip_tokenizer_init": True,
        "worker_extension_cls": f"{__name__}.{SessionWorker.__name__}",
        **arguments,
    }
    with _coming_or_going, starting(), reading_classes_here():
        return EngineArgs(**arguments).create_engine_config()


def rooms(pool: int, groups: Sequence[tuple[int, bool]]) -> tuple[int, int]:
    """Room for text in a pool of vLLM's blocks: (tokens, count), `count` rooms of as many `tokens` each.

    Every group of layers takes blocks of its own for the same text, of its own size: a room costs what all groups
    take of `tokens` tokens together, so that sequences whose rooms are reserved never find the pool empty.

    Args:
        groups: of each its tokens a block, and whether its layers are recurrent: such a block may stand for a
            whole context, and says nothing about how text grows.
    """
    tokens, cost = _room(groups)
    return tokens, pool // cost


def pool_for(cache_tokens: int, groups: Sequence[tuple[int, bool]], sequences: int) -> int:
    """The blocks in whose rooms (see `rooms`) so many tokens fit; where all layers are recurrent, and a room is a
    context, so many sequences."""
    tokens, cost = _room(groups)
    recurrent = bool(groups) and all(recurrent for _, recurrent in groups)
    return max(-(-cache_tokens // tokens), sequences if recurrent else 0) * cost


def _room(groups: Sequence[tuple[int, bool]]) -> tuple[int, int]:
    """The tokens of a room and the blocks that it costs."""
    growing = [size for size, recurrent in groups if not recurrent]
    tokens = max(growing or [size for size, _ in groups], default=1)
    return tokens, max(1, sum(-(-tokens // size) for size, _ in groups))


class Core:
    """A vLLM engine core in this process: opens, extends, shortens and steps requests. Not thread-safe."""

    def __init__(self, config: VllmConfig, *, cache_tokens: int | None) -> None:
        """Build the engine; None leaves the size of the cache to vLLM. Raises whatever vLLM raises."""
        global _alive
        self.config = config
        with _coming_or_going, starting():
            _share_cores(config)
            with told_why(config):
                self._core = _build(config, cache_tokens)
            _alive += 1
        self.reminded = not self.config.use_v2_model_runner
        if self.reminded:
            self._core.model_executor.collective_rpc("adapt_to_cpu")
        self._core.model_executor.collective_rpc("name_ids")
        self._on_cpu = self.config.device_config.device_type == "cpu"
        self.vocabulary_size: int = self.config.model_config.get_vocab_size()
        self.context: int = self.config.model_config.max_model_len - 1  # vLLM keeps a place for the sampled token
        cache = self._core.scheduler.kv_cache_manager
        managers = cache.coordinator.single_type_managers
        groups = [(manager.block_size, _is_recurrent(manager.kv_cache_spec)) for manager in managers]
        pool = self.config.cache_config.num_gpu_blocks - 1  # less the null block
        self.block, self.blocks = rooms(pool, groups)

    def add(self, request_id: str, ids: list[int], sampling: SamplingParams, *, session: bool, lora: Any) -> None:
        """Open a request; a session waits for more after its answer."""
        self._core.add_request(
            Request(
                request_id,
                ids,
                sampling,
                None,
                lora_request=lora,
                block_hasher=self._core.request_block_hasher,
                resumable=session,
            )
        )

    def extend(self, request_id: str, ids: list[int], sampling: SamplingParams) -> None:
        """Give a session its next part."""
        if self.reminded and sampling.prompt_logprobs is not None:
            arguments = ([request_id], sampling.prompt_logprobs)
            self._core.model_executor.collective_rpc("score_extensions", args=arguments)
        self._core.add_request(Request(request_id, ids, sampling, None, resumable=True))

    def look(self, asked: list[tuple[int, list[int]]]) -> list[NDArray[np.float32] | None]:
        """The log-probabilities of ids at the row that is kept for each number; None where there is none."""
        of_workers = self._core.model_executor.collective_rpc("look", args=(asked,))
        return [next((row for row in rows if row is not None), None) for rows in zip(*of_workers, strict=True)]

    def drop_rows(self, numbers: list[int]) -> None:
        """Forget the rows that are kept for these numbers."""
        self._core.model_executor.collective_rpc("drop_rows", args=(numbers,))

    def truncate(self, request_id: str, keep: int) -> bool:
        """See `SessionScheduler.truncate_session`."""
        return bool(self._core.scheduler.truncate_session(request_id, keep))

    def forget(self, request_id: str) -> None:
        """See `SessionScheduler.forget`."""
        self._core.scheduler.forget(request_id)

    def abort(self, request_ids: list[str]) -> None:
        """End requests in whatever state they are; unknown ids are ignored."""
        self._core.abort_requests(request_ids)

    @staticmethod
    def reused(output: EngineCoreOutput) -> int:
        """Return the tokens of a request's first part that the prefix cache held; 0 in its later outputs."""
        stats = getattr(output, "prefill_stats", None)  # 0.32 has the number alone
        return int(stats.num_cached_tokens if stats is not None else getattr(output, "num_cached_tokens", 0) or 0)

    def failed(self) -> bool:
        """Return whether a worker process is gone, and with it its part of the model."""
        return bool(getattr(self._core.model_executor, "is_failed", False))

    def step(self) -> list[EngineCoreOutput]:
        """One step: schedule, run, and what came of it."""
        threads = torch.get_num_threads()  # in a thread of ours it sets them too, which vLLM's CPU kernels need
        if self._spares_a_core(threads):
            torch.set_num_threads(threads - 1)
        try:
            outputs, executed = self._core.step_fn()
            self._core.post_step(model_executed=executed)
        finally:
            torch.set_num_threads(threads)
        return [output for of_client in (outputs or {}).values() for output in of_client.outputs]

    def _spares_a_core(self, threads: int) -> bool:
        """Return whether the step is over a few tokens only, on several cores.

        It is bound by memory then, and loses little with a thread less, while other threads of the server have the
        core: those that send what came before, tokenise, or fuse. If a thread of the step had to give its core
        up to them, all the others would wait for it, layer after layer.
        """
        requests = self._core.scheduler.requests
        if not self._on_cpu or threads == 1 or len(requests) > MEMORY_BOUND_TOKENS:
            return False
        left = [request.num_tokens - request.num_computed_tokens for request in requests.values()]
        return bool(sum(left) <= MEMORY_BOUND_TOKENS)

    def shutdown(self) -> None:
        """End the workers, free weights and cache; the process groups go with the last engine here."""
        global _alive
        with _coming_or_going:
            _alive -= 1
            _release(self._core)
            del self._core


def _share_cores(config: VllmConfig) -> None:
    """Let several workers of a CPU start with fewer NUMA nodes than workers: they are not bound to cores."""
    if current_platform.is_cpu() and len(get_visible_memory_node()) < config.parallel_config.local_world_size:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        disable_envs_cache()  # with an engine in this process already, vLLM would not look again


class _EngineCore(EngineCore):  # type: ignore[misc]
    """vLLM's engine core with a cache for `cache_tokens`: a block's size is known once the model is loaded."""

    cache_tokens: int | None

    def _initialize_kv_caches(self, vllm_config: VllmConfig) -> KVCacheConfig:
        if self.cache_tokens is not None:
            # Asked for with weights loaded and before anything is sized by it.
            executor, tokens = self.model_executor, self.cache_tokens
            asked = executor.get_kv_cache_specs

            def sized() -> list[dict[str, KVCacheSpec]]:
                found: list[dict[str, KVCacheSpec]] = asked()
                specs = {name: spec for of_worker in found for name, spec in of_worker.items()}
                vllm_config.cache_config.num_gpu_blocks_override = 1 + _pool(vllm_config, specs, tokens)
                del executor.get_kv_cache_specs
                return found

            executor.get_kv_cache_specs = sized
        return super()._initialize_kv_caches(vllm_config)


def _pool(config: VllmConfig, specs: dict[str, KVCacheSpec], tokens: int) -> int:
    """The blocks for so many tokens of layers of these kinds, besides the null block."""
    across = config.parallel_config.decode_context_parallel_size
    kinds = [group.kv_cache_spec for group in get_kv_cache_groups(config, specs)]
    sizes = [(resolve_dcp_kv_block_size(kind, across), _is_recurrent(kind)) for kind in kinds]
    return pool_for(tokens, sizes, config.scheduler_config.max_num_seqs)


def _is_recurrent(spec: KVCacheSpec) -> bool:
    return isinstance(spec, MambaSpec)


def _build(config: VllmConfig, cache_tokens: int | None) -> EngineCore:
    """The engine core; what it had started is ended if it does not come up."""
    core: Any = _EngineCore.__new__(_EngineCore)
    core.cache_tokens = cache_tokens
    try:
        core.__init__(config, Executor.get_class(config), log_stats=False)
    except BaseException:
        _release(core)
        raise
    return core


def _release(core: EngineCore) -> None:
    """Shut the core down as `EngineCore.shutdown` does, but leave the process groups of other engines alone."""
    for part in ("scheduler", "model_executor"):
        with suppress(Exception):
            getattr(core, part).shutdown()
        with suppress(AttributeError):
            delattr(core, part)
    if not _alive:
        cleanup_dist_env_and_memory()
