/* SPDX-License-Identifier: Apache-2.0 */
/* dog vdi: the table of its verbs, and those that move no data. */
#include "dog/vdi.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "base/human.h"

static const struct option_spec create_options[] = {
    {"object-size", 0, OPTION_TEXT, "SIZE",
     "unit that the volume is cut into, 64K to 64M (the pool's)"},
    {"pool", 0, OPTION_TEXT, "POOL", "pool to put it into (default)"},
    {NULL},
};
static const struct option_spec tag_options[] = {
    {"tag", 's', OPTION_TEXT, "TAG", "name of the snapshot"},
    {NULL},
};
static const struct option_spec delete_options[] = {
    {"tag", 's', OPTION_TEXT, "TAG", "delete this snapshot, not the volume"},
    {"wait", 'w', OPTION_FLAG, NULL, "return only when all space has been given back"},
    {NULL},
};

json_t *vdi_request(const struct dog *d, const char *op)
{
    json_t *request = json_pack("{s:s, s:s}", "op", op, "name", dog_argument(d, 0));
    const char *tag = options_text(d->options, "tag");
    if (request && tag)
        json_object_set_new(request, "tag", json_string(tag));
    return request;
}

/* A request that needs -s TAG; NULL after a message. */
static json_t *tagged_request(const struct dog *d, const char *op)
{
    if (options_has(d->options, "tag"))
        return vdi_request(d, op);
    dog_usage("which snapshot? give its name with -s TAG");
    return NULL;
}

static int run_create(struct dog *d)
{
    uint64_t size, object_size;
    const char *object_size_text = options_text(d->options, "object-size");
    const char *pool = options_text(d->options, "pool");
    int r = dog_parse_size("size", dog_argument(d, 1), &size);
    if (r == 0 && object_size_text)
        r = dog_parse_size("object size", object_size_text, &object_size);
    if (r != 0)
        return r;
    if (size > INT64_MAX)
        return dog_usage("size \"%s\" is too large", dog_argument(d, 1));
    json_t *request = vdi_request(d, "vdi.create");
    json_object_set_new(request, "size", json_integer((json_int_t)size));
    if (object_size_text)
        json_object_set_new(request, "object_size", json_integer((json_int_t)object_size));
    if (pool)
        json_object_set_new(request, "pool", json_string(pool));
    return dog_run_simple(d, request);
}

static int run_resize(struct dog *d)
{
    uint64_t size;
    int r = dog_parse_size("size", dog_argument(d, 1), &size);
    if (r != 0)
        return r;
    if (size > INT64_MAX)
        return dog_usage("size \"%s\" is too large", dog_argument(d, 1));
    json_t *request = vdi_request(d, "vdi.resize");
    json_object_set_new(request, "size", json_integer((json_int_t)size));
    return dog_run_simple(d, request);
}

/* Waits until nothing is left to reclaim, by asking; shows how much there is. Nothing must be left
 * twice in a row: the nodes are asked one after the other, and work passes from one to another
 * meanwhile. */
static int wait_reclaim(struct dog *d)
{
    struct human_progress p;
    int code = DOG_OK;
    uint64_t highest = 0;
    unsigned quiet_count = 0;
    human_progress_begin(&p, d->progress ? "reclaiming" : NULL, dog_now());
    for (;;) {
        json_t *answer = dog_ask(d, json_pack("{s:s}", "op", "cluster.info"), NULL, NULL, &code);
        if (!answer)
            break;
        const json_t *backlog = json_object_get(answer, "backlog");
        bool quiet = dog_u64(backlog, "trash") == 0 && dog_u64(backlog, "dying") == 0;
        uint64_t used = dog_u64(answer, "used_bytes");
        json_decref(answer);
        quiet_count = quiet ? quiet_count + 1 : 0;
        if (quiet_count == 2)
            break;
        highest = used > highest ? used : highest;
        human_progress_update(&p, highest - used, 0, dog_now());
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    human_progress_end(&p);
    return code;
}

static int run_delete(struct dog *d)
{
    int code = dog_run_simple(d, vdi_request(d, "vdi.delete"));
    if (code == DOG_OK && options_has(d->options, "wait"))
        code = wait_reclaim(d);
    return code;
}

static int run_snapshot(struct dog *d)
{
    json_t *request = tagged_request(d, "vdi.snapshot");
    return request ? dog_run_simple(d, request) : DOG_USAGE;
}

static int run_rollback(struct dog *d)
{
    json_t *request = tagged_request(d, "vdi.rollback");
    return request ? dog_run_simple(d, request) : DOG_USAGE;
}

static int run_clone(struct dog *d)
{
    json_t *request = tagged_request(d, "vdi.clone");
    if (!request)
        return DOG_USAGE;
    json_object_set_new(request, "new_name", json_string(dog_argument(d, 1)));
    return dog_run_simple(d, request);
}

static const struct dog_verb verbs[] = {
    {"create", "NAME SIZE", 2, 2, create_options, "makes an empty volume",
     "A volume takes space only as it is written. SIZE is in bytes or with K, M, G or T (1024).\n\n"
     "Examples:\n"
     "  dog vdi create disk 10G\n"
     "  dog vdi create db 2T --object-size 1M\n"
     "  qemu-system-x86_64 -drive file=nbd://127.0.0.1/disk,format=raw,if=virtio …\n",
     run_create},
    {"delete", "NAME", 1, 1, delete_options, "deletes a volume, or with -s one of its snapshots",
     "Returns at once; space comes back in the background (dog cluster info shows what is left).\n"
     "What clones and other snapshots still use stays. A volume that is open cannot be deleted; "
     "its\n"
     "snapshots stay until they are deleted themselves.\n\n"
     "Examples:\n"
     "  dog vdi delete disk\n"
     "  dog vdi delete -s monday disk --wait\n",
     run_delete},
    {"list", "[NAME]", 0, 1, NULL, "lists volumes and snapshots, with the space that each uses",
     "\"Used\" is what an image wrote itself (own objects times object size, before copies),\n"
     "\"Shared\" what it reads from the images that it was copied from.\n\n"
     "Examples:\n"
     "  dog vdi list\n"
     "  dog vdi list disk --json\n"
     "  dog vdi list -r     type name snapid size used shared ctime vid copies tag "
     "block_size_shift\n",
     vdi_run_list},
    {"tree", "[NAME]", 0, 1, NULL, "shows which image was copied from which",
     "Images whose origin was deleted stand at the left.\n\n"
     "Examples:\n"
     "  dog vdi tree\n",
     vdi_run_tree},
    {"snapshot", "-s TAG NAME", 1, 1, tag_options, "keeps the present content of a volume",
     "Takes the same short time at any size, also while a machine writes to the volume (it sees a\n"
     "pause of milliseconds). The snapshot can be read as NAME@TAG by NBD. The same tag again is "
     "the\n"
     "same request.\n\n"
     "Examples:\n"
     "  dog vdi snapshot -s monday disk\n"
     "  qemu-img convert nbd://127.0.0.1/disk@monday monday.qcow2\n",
     run_snapshot},
    {"clone", "-s TAG SOURCE NAME", 2, 2, tag_options, "makes a writable volume out of a snapshot",
     "At once and without copying, at any size. The clone lives on when the source is deleted.\n\n"
     "Examples:\n"
     "  dog vdi clone -s golden template vm1\n",
     run_clone},
    {"rollback", "-s TAG NAME", 1, 1, tag_options, "sets a volume back to one of its snapshots",
     "What was written since is lost. The snapshot stays. Not while the volume is open.\n\n"
     "Examples:\n"
     "  dog vdi rollback -s monday disk\n",
     run_rollback},
    {"resize", "NAME SIZE", 2, 2, NULL, "makes a volume larger or smaller",
     "What lies beyond a smaller size is lost. Clients see the new size when they connect "
     "again.\n\n"
     "Examples:\n"
     "  dog vdi resize disk 20G\n",
     run_resize},
    {"read", "NAME [OFFSET [LENGTH]]", 1, 3, tag_options,
     "writes a volume's content to standard output",
     "With -s that of a snapshot. Holes become holes when the output is a file.\n\n"
     "Examples:\n"
     "  dog vdi read disk > disk.raw\n"
     "  dog vdi read -s monday disk 0 512 | xxd\n",
     vdi_run_read},
    {"write", "NAME [OFFSET [LENGTH]]", 1, 3, NULL,
     "reads standard input and writes it to a volume",
     "Until the end of the input, or LENGTH bytes. Blocks of zeros give space back.\n\n"
     "Examples:\n"
     "  dog vdi write disk < disk.raw\n"
     "  printf boot | dog vdi write disk 1M\n",
     vdi_run_write},
    {"discard", "NAME OFFSET LENGTH", 3, 3, NULL, "gives the space of a range back",
     "The range reads as zeros afterwards; ragged ends of less than 4 KiB are left as they are.\n\n"
     "Examples:\n"
     "  dog vdi discard disk 1G 512M\n",
     vdi_run_discard},
    {NULL},
};
const struct dog_noun dog_vdi = {"vdi", "volumes (virtual disk images) and their snapshots", verbs};
