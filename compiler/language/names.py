"""Which names a spec may give: they become Python identifiers, module attributes and segments of node ids."""

from __future__ import annotations

import keyword
import re

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
MAX_LENGTH = 64

# Ids of the graph's ends, and the parameter that holds a scope's gates.
_TAKEN = frozenset({"input", "output", "gates", "in", "levels"})
_TAKEN_PATTERN = re.compile(r"(in|level|block)[0-9]+")

# Attributes of torch modules and of the graph modules of torch.fx: a node or block of that name would hide them. Kept
# as a list because the language must not import torch; a test compares it with the installed torch.
# fmt: off
_MODULE_ATTRIBUTES = frozenset(
    {
        "add_module", "add_submodule", "apply", "bfloat16", "buffers", "call_super_init", "children", "code",
        "compile", "cpu", "cuda", "delete_all_unused_submodules", "delete_submodule", "double",
        "dump_patches", "eval", "extra_repr", "float", "forward", "get_buffer", "get_extra_state",
        "get_parameter", "get_submodule", "graph", "half", "ipu", "load_state_dict", "meta", "modules",
        "mtia", "named_buffers", "named_children", "named_modules", "named_parameters", "parameters",
        "print_readable", "recompile", "register_backward_hook", "register_buffer", "register_forward_hook",
        "register_forward_pre_hook", "register_full_backward_hook", "register_full_backward_pre_hook",
        "register_load_state_dict_post_hook", "register_load_state_dict_pre_hook", "register_module",
        "register_parameter", "register_state_dict_post_hook", "register_state_dict_pre_hook",
        "requires_grad_", "set_extra_state", "set_submodule", "shape_env", "share_memory", "state_dict", "to",
        "to_empty", "to_folder", "train", "training", "type", "xpu", "zero_grad",
    }
)
# fmt: on


def name_problem(name: str) -> str:
    """Why `name` may not name a node, a block, an op or a network entry; the empty string if it may."""
    if not _NAME.fullmatch(name):
        return "names are lower-case letters, digits and _, and start with a letter"
    if len(name) > MAX_LENGTH:
        return f"names have at most {MAX_LENGTH} characters"
    if keyword.iskeyword(name):
        return "it is a Python keyword"
    if name in _TAKEN or _TAKEN_PATTERN.fullmatch(name):
        return "graphspec uses this name itself"
    if name in _MODULE_ATTRIBUTES:
        return "torch modules use this name themselves"
    return ""


def symbol_problem(name: str) -> str:
    """Why `name` may not name a symbol; the empty string if it may."""
    if not _SYMBOL.fullmatch(name):
        return "symbols are letters, digits and _, and start with a letter"
    if len(name) > MAX_LENGTH:
        return f"symbols have at most {MAX_LENGTH} characters"
    return "it is a Python keyword" if keyword.iskeyword(name) else ""
