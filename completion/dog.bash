# SPDX-License-Identifier: Apache-2.0
# Completion of dog(8) for bash: nouns, verbs, options, volumes and snapshots.

# Words of the first column of `dog -r vdi list`, asked from the sheep that the command line names.
_dog_volumes()
{
    local options=() i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        -a | -p | --address | --port | --sheep)
            options+=("${COMP_WORDS[i]}" "${COMP_WORDS[i + 1]}")
            ;;
        vdi) break ;;
        -s) options+=(-s "${COMP_WORDS[i + 1]}") ;;
        esac
    done
    timeout 2 dog "${options[@]}" -r vdi list 2> /dev/null | cut -d' ' -f2,9 | sort -u
}

_dog()
{
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local noun='' verb='' i word skip=0
    local common='--address --port --sheep --json --raw --quiet --force --help'
    local verbs_cluster='format info status check'
    local verbs_node='list info recovery drain weight lost remove'
    local verbs_pool='list set'
    local verbs_vdi='create delete list tree snapshot clone rollback resize read write discard'
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((skip)); then
            skip=0
            continue
        fi
        case $word in
        -a | -p | -s | --address | --port | --sheep | --tag | --copies | -c | --min-copies | --object-size | --groups | \
            --name | --wait-nodes | --pool | --accept-loss) skip=1 ;;
        -*) ;;
        *)
            if [[ -z $noun ]]; then noun=$word; elif [[ -z $verb ]]; then verb=$word; fi
            ;;
        esac
    done
    if [[ -z $noun ]]; then
        mapfile -t COMPREPLY < <(compgen -W "cluster node pool vdi $common" -- "$cur")
        return
    fi
    if [[ -z $verb ]]; then
        local list=verbs_$noun
        mapfile -t COMPREPLY < <(compgen -W "${!list} $common" -- "$cur")
        return
    fi
    case $prev in
    -s | --tag)
        mapfile -t COMPREPLY < <(compgen -W "$(_dog_volumes | cut -d' ' -f2)" -- "$cur")
        return
        ;;
    --copies | -c | --min-copies | --object-size | --groups | --name | --wait-nodes | --pool | -a | -p) return ;;
    esac
    local options=$common
    case $noun.$verb in
    cluster.format) options+=' --copies --min-copies --object-size --groups --name --wait-nodes' ;;
    node.drain) options+=' --undo' ;;
    node.lost) options+=' --accept-loss' ;;
    pool.set) options+=' --copies --min-copies' ;;
    vdi.create) options+=' --object-size --pool' ;;
    vdi.delete) options+=' --tag --wait' ;;
    vdi.snapshot | vdi.clone | vdi.rollback | vdi.read) options+=' --tag' ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    elif [[ $noun == vdi && $verb != create ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_dog_volumes | cut -d' ' -f1)" -- "$cur")
    fi
}
complete -F _dog dog
