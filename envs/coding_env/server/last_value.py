"""The value of the last statement, in the words of older servers: JSON where it has one, otherwise its repr.

Older servers appended it to stdout and counted assignments: `x = 5` showed `5`. Finding it takes a look at
the code, and that is done where the code ran: inside the sandbox, as one more run after the step. The server
parses nothing that it was sent.
"""

from sandbox import PolicyError, Sandbox

__all__ = ["last_value"]

_PATIENCE_S = 2.0

_PROGRAM = """
import ast, json, sys
def as_json(value):
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
def of_assignment():
    last = (ast.parse(code).body or [None])[-1]
    if isinstance(last, ast.Assign):
        target = last.targets[0]
    elif isinstance(last, ast.AugAssign) or (isinstance(last, ast.AnnAssign) and last.value is not None):
        target = last.target
    else:
        return None
    return eval(ast.unparse(target), main)
if shown is None:
    value = of_assignment()
    text = None if value is None else as_json(value)
else:
    try:
        text = as_json(ast.literal_eval(shown))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        text = shown
if text is not None:
    sys.stdout.write(text)
"""


async def last_value(box: Sandbox, code: str, shown: str | None) -> tuple[str, bool]:
    """The text to append after a step that ended normally, and whether finding it lost the state.

    `shown` is the repr of a trailing expression, which cannot be evaluated again.
    """
    names = f"{{'code': {code!r}, 'shown': {shown!r}, 'main': globals()}}"
    try:
        result = await box.run_code(f"exec({_PROGRAM!r}, {names})", timeout_s=_PATIENCE_S)
    except PolicyError:  # quoted like this, the code is longer than the policy allows
        return shown or "", False
    return (result.stdout if result.ok else shown or ""), result.state_lost
