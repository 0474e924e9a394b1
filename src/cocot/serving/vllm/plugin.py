"""What vLLM calls when it starts: folders that think get a scheduler and a model that think; others stay as they are.

In: vLLM's configuration of a server. Out: the same, changed, or an error before any weight is read.
Read next: `scheduler.py`, `models.py`.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cocot.data.layout import ThoughtSettings
from cocot.methods import METHODS, Asked
from cocot.methods.tokens import LATENT
from cocot.modeling.thought_settings import thought_settings

ARCHITECTURES = (
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)
"""Classes of which the tests have seen that vLLM thinks with them as transformers does."""
PREFIX = "Thinking"
"""Before the name of an architecture: that of the class in `models.py`."""
_SCHEDULER = "cocot.serving.vllm.scheduler.ThoughtScheduler"
_MODELS = "cocot.serving.vllm.models"
_BUDGET = "cocot.serving.vllm.budget:ThoughtBudget"


def register() -> None:
    """Tell vLLM of the models that think, and look at every configuration: vLLM's entry point `vllm.general_plugins`.

    vLLM calls it in each of its processes, at times more than once.
    """
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(PREFIX + architecture, f"{_MODELS}:{PREFIX}{architecture}")
    # Of all classes, so that one which cannot think is refused, and does not take placeholders for words.
    for architecture in ModelRegistry.get_supported_archs():
        known: Any = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        if not hasattr(known, "looks_for_thoughts"):
            MODELS_CONFIG_MAP[architecture] = _looking_for_thoughts(known)


def _looking_for_thoughts(known: Any) -> Any:
    """What vLLM does to configurations of an architecture, and then what thoughts need."""

    class Config(known):  # type: ignore[misc]
        looks_for_thoughts = True

        @classmethod
        def verify_and_update_model_config(cls, model_config: Any) -> None:
            super().verify_and_update_model_config(model_config)
            if has_thoughts(model_config):
                prepare_model(model_config)

        @classmethod
        def verify_and_update_config(cls, vllm_config: Any) -> None:
            super().verify_and_update_config(vllm_config)
            if has_thoughts(vllm_config.model_config):
                prepare_engine(vllm_config)

    return Config


def has_thoughts(model_config: Any) -> bool:
    """Whether a folder's `config.json` says that the model thinks in continuous thoughts."""
    found: dict[str, Any] = getattr(model_config.hf_config, "thoughts", None) or {}
    return found.get("filler") == LATENT


def settings_of(model_config: Any) -> ThoughtSettings:
    """What the folder's `config.json` says about its thoughts.

    Raises:
        ModelError: it cannot be read.
    """
    return thought_settings(SimpleNamespace(config=model_config.hf_config))


def decides_itself(settings: ThoughtSettings) -> bool:
    """Whether the model decides how many thoughts it takes."""
    has_part = settings.modules_of is not None and Asked.STOPS in METHODS[settings.modules_of].asks
    return settings.stop_id is not None or has_part


def prepare_model(model_config: Any) -> None:
    """Let the class that thinks be loaded, and answers be greedy unless a request says otherwise, as in the folder.

    Raises:
        ValueError: vLLM cannot think as this model does.
    """
    settings = settings_of(model_config)
    architecture = model_config.hf_config.architectures[0]
    refusals = {
        f"a model of class {architecture} (those of {', '.join(ARCHITECTURES)} can)": architecture not in ARCHITECTURES,
        "thoughts that are refined together (`pccot`)": settings.iterations is not None,
        "a model class of transformers (--model-impl)": model_config.model_impl not in ("auto", "vllm"),
        "prompts as embeddings (--enable-prompt-embeds)": model_config.enable_prompt_embeds,
        "anything but writing text (--runner)": model_config.runner_type != "generate",
    }
    _refuse(refusals)
    if decides_itself(settings):
        model_config.logits_processors = [*(model_config.logits_processors or []), _BUDGET]
    model_config.hf_config.architectures = [PREFIX + architecture]
    if model_config.generation_config == "auto" and not model_config.try_get_generation_config().get("do_sample"):
        model_config.override_generation_config.setdefault("temperature", 0.0)  # vLLM does not read `do_sample`


def prepare_engine(vllm_config: Any) -> None:
    """Let the scheduler that thinks be used, and no engine feature that would lose a thought's hidden state.

    Raises:
        ValueError: a feature that was asked for does not go with thoughts.
    """
    from vllm import envs
    from vllm.config import CUDAGraphMode
    from vllm.platforms import current_platform

    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    refusals = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
        "batches cut in parts (--enable-dbo, --ubatch-size)": parallel.use_ubatching,
        "VLLM_USE_BREAKABLE_CUDAGRAPH": envs.VLLM_USE_BREAKABLE_CUDAGRAPH,
        "key-value connectors and offloading": vllm_config.kv_transfer_config is not None
        or vllm_config.cache_config.kv_offloading_size is not None,
        "vLLM's model runner V2 where the model decides how many thoughts it takes (VLLM_USE_V2_MODEL_RUNNER=0)": (
            decides_itself(settings_of(vllm_config.model_config)) and vllm_config.use_v2_model_runner
        ),
        "a scheduler of your own": scheduler.scheduler_cls not in (None, _SCHEDULER),
    }
    _refuse(refusals)
    scheduler.scheduler_cls = _SCHEDULER
    graphs = vllm_config.compilation_config
    mode = CUDAGraphMode.FULL if graphs.cudagraph_mode is None else graphs.cudagraph_mode
    if current_platform.is_cuda_alike() and mode.has_full_cudagraphs():
        graphs.cudagraph_mode = CUDAGraphMode.PIECEWISE  # what is around the layers reads the block table of the step


def _refuse(refusals: dict[str, Any]) -> None:
    """Raise an error that names what is asked for and does not go with thoughts."""
    asked = [what for what, is_asked in refusals.items() if is_asked]
    if asked:
        raise ValueError(f"cocot: continuous thoughts inside vLLM do not go with {', '.join(asked)}.")
