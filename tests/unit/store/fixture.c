/* SPDX-License-Identifier: Apache-2.0 */
/* See fixture.h. */
#include "fixture.h"
#include <stdio.h>

static void main_fiber(void *arg)
{
    struct fixture *f = arg;
    struct store_format_options options = {.log_bytes = 1 << 20};

    assert_int_equal(store_format(f->rt, "disk", &options, NULL, NULL), 0);
    f->body(f);
    f->ran = true;
}

void fixture_run(uint64_t size, enum disk_durability durability, void (*body)(struct fixture *f))
{
    struct fixture f = {.body = body};

    f.sim = sim_new(42);
    f.rt = sim_node_new(f.sim, NULL);
    assert_int_equal(sim_disk_new(f.sim, "disk", size, durability), 0);
    sim_do(f.sim, f.rt, main_fiber, &f);
    assert_true(f.ran);
    sim_free(f.sim);
}

fiber_fn void fixture_open(struct fixture *f)
{
    struct store_open_options options = {.cache_bytes = f->cache_bytes,
                                         .zero_ahead_bytes = f->zero_ahead_bytes,
                                         .scrub_bytes_per_s = f->scrub_rate,
                                         .discard_batch_ms = f->discard_batch_ms};

    assert_int_equal(store_open(f->rt, "disk", &options, &f->s), 0);
}

fiber_fn void fixture_close(struct fixture *f)
{
    assert_int_equal(store_close(f->s), 0);
    f->s = NULL;
}

static void finding(void *arg, const char *text)
{
    struct fixture *f = arg;

    if (f->finding_count < ARRAY_SIZE(f->findings))
        snprintf(f->findings[f->finding_count], sizeof(f->findings[0]), "%s", text);
    f->finding_count++;
}

fiber_fn unsigned fixture_check(struct fixture *f)
{
    struct store_check_report report;

    f->finding_count = 0;
    assert_int_equal(store_check(f->rt, "disk", true, finding, f, &report), 0);
    assert_int_equal(report.error_count, f->finding_count);
    return f->finding_count;
}

struct oid fixture_oid(uint64_t vid, uint32_t index)
{
    return (struct oid){.vid = vid, .index = index, .group = (uint16_t)(index % 7)};
}

fiber_fn int fixture_write(struct fixture *f, struct oid oid, struct version prev,
                           struct version next, uint32_t offset, uint32_t length, uint8_t fill)
{
    uint8_t *data = aligned_alloc(4096, ALIGN_UP(length, 4096u));
    struct store_extent extent = {offset, length};
    struct iovec iov = {data, length};
    struct store_change c = {.kind = STORE_WRITE,
                             .oid = oid,
                             .prev = prev,
                             .next = next,
                             .extents = &extent,
                             .extent_count = 1,
                             .iov = &iov,
                             .iov_count = 1};
    int r;

    memset(data, fill, length);
    r = store_apply(f->s, &c, NULL);
    free(data);
    return r;
}

fiber_fn int fixture_change(struct fixture *f, enum store_change_kind kind, struct oid oid,
                            struct version prev, struct version next)
{
    struct store_change c = {.kind = kind, .oid = oid, .prev = prev, .next = next};

    return store_apply(f->s, &c, NULL);
}

fiber_fn int fixture_clone(struct fixture *f, struct oid source, struct oid oid,
                           struct version next)
{
    struct store_change c = {.kind = STORE_CLONE, .oid = oid, .source = source, .next = next};

    return store_apply(f->s, &c, NULL);
}

fiber_fn int fixture_read(struct fixture *f, struct oid oid, uint64_t offset, size_t length)
{
    uint8_t *data = aligned_alloc(4096, ALIGN_UP(length, (size_t)4096));
    int r = store_read(f->s, &oid, offset, length, data, NULL);

    for (size_t i = 0; r >= 0 && i < length; i++)
        r = i == 0 || data[i] == r ? data[i] : -1;
    free(data);
    return r;
}
