# SPDX-License-Identifier: Apache-2.0
# Completion of sheep(8) for bash: commands, options, paths of stores.

_sheep()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local options
    case ${COMP_WORDS[1]} in
    format) options='--size --overwrite --log-size --sparse --zero-all --log-level --help' ;;
    trim) options='--log-level --help' ;;
    check) options='--data --repair --json --log-level --help' ;;
    *) options=$(sheep --help 2> /dev/null | sed -n '/^run:/,/^$/s/^  \(--[a-z-]*\).*/\1/p') ;;
    esac
    case $prev in
    --log-level)
        mapfile -t COMPREPLY < <(compgen -W 'error warn info debug' -- "$cur")
        return
        ;;
    --size | --log-size | --name | --zone | --weight | --admin | --peer | --nbd | --cache | --scrub-rate | --recovery-rate | --out-after | --cluster) return ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    elif ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W 'run format check trim' -- "$cur"; compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}
complete -o filenames -F _sheep sheep
