"""Print completion for a shell: commands, options, and names after `zoo show`, `zoo train` and `zoo list`.

source <(zoo completion bash)              (in ~/.bashrc)
source <(zoo completion zsh)               (in ~/.zshrc, after compinit)
zoo completion fish > ~/.config/fish/completions/zoo.fish
"""

from __future__ import annotations

import argparse
from importlib import import_module

SHELLS = ("bash", "zsh", "fish")

BASH = """\
_zoo() {
    local word="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%(commands)s"
    else
        case "$command" in
%(cases)s
        esac
        case "$word" in
            -*) ;;
            *) case "$command" in
                   list) words="%(kinds)s" ;;
                   train) words="$(zoo list recipes 2>/dev/null | cut -d' ' -f1)" ;;
                   show) words="$(for kind in recipes datasets weights families; do
                       zoo list $kind 2>/dev/null; done | cut -d' ' -f1)" ;;
                   data) [ "$COMP_CWORD" -eq 2 ] && words="check fetch init sample" ||
                       words="$(zoo list datasets 2>/dev/null | cut -d' ' -f1)" ;;
                   weights) words="list pull verify mirror push remove" ;;
                   completion) words="bash zsh fish" ;;
                   *) words="" ;;
               esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ "${#COMPREPLY[@]}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$word"))
}
complete -F _zoo zoo
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `zoo completion`."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from zoo.cli.catalogue import KINDS
    from zoo.cli.main import COMMANDS

    options = {name: _options(name) for name in COMMANDS}
    if args.shell == "fish":
        print(_fish(options, list(KINDS)))
        return 0
    cases = "\n".join(f'            {name}) words="{" ".join(words)}" ;;' for name, words in options.items())
    script = BASH % {"commands": " ".join(COMMANDS), "cases": cases, "kinds": " ".join(KINDS)}
    print(("autoload -U +X bashcompinit && bashcompinit\n" if args.shell == "zsh" else "") + script, end="")
    return 0


def _options(command: str) -> list[str]:
    from zoo.cli.main import COMMANDS, Parser

    parser = Parser(f"zoo {command}")
    import_module(COMMANDS[command][0]).add_arguments(parser)
    return [word for word in parser.options() if word.startswith("--")]


def _fish(options: dict[str, list[str]], kinds: list[str]) -> str:
    from zoo.cli.main import COMMANDS

    lines = ["complete -c zoo -f"]
    for name, (_, summary) in COMMANDS.items():
        text = summary.replace("'", "")
        lines.append(f"complete -c zoo -n __fish_use_subcommand -a {name} -d '{text}'")
        lines += [f"complete -c zoo -n '__fish_seen_subcommand_from {name}' -l {word[2:]}" for word in options[name]]
    lines.append(f"complete -c zoo -n '__fish_seen_subcommand_from list' -a '{' '.join(kinds)}'")
    names = "(zoo list recipes 2>/dev/null | string split -f1 ' ')"
    lines.append(f"complete -c zoo -n '__fish_seen_subcommand_from train' -a '{names}'")
    lines.append("complete -c zoo -n '__fish_seen_subcommand_from predict check data train' -F")
    return "\n".join(lines)
