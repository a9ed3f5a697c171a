/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of text with aligned columns. */
#include "dog/table.h"
#include <string.h>
#include "dog/memory.h"

struct table {
    const struct table_column *columns;
    unsigned column_count;
    char **cells; /* row by row; owned */
    size_t cell_count, cell_capacity;
};

struct table *table_new(const struct table_column *columns, unsigned column_count)
{
    ASSERT(column_count > 0);
    struct table *t = dog_alloc(sizeof(*t));
    t->columns = columns;
    t->column_count = column_count;
    return t;
}

void table_cell(struct table *t, const char *text)
{
    if (t->cell_count == t->cell_capacity) {
        t->cell_capacity = t->cell_capacity ? 2 * t->cell_capacity : 64;
        t->cells = dog_realloc(t->cells, t->cell_capacity * sizeof(*t->cells));
    }
    char *copy = dog_strdup(text);
    for (char *p = copy; *p != '\0'; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = '?';
    }
    t->cells[t->cell_count++] = copy;
}

size_t table_width(const char *text)
{
    size_t width = 0;
    for (; *text != '\0'; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80; /* not a continuation byte */
    return width;
}

static void print_cell(const struct table *t, unsigned column, const char *text, size_t width,
                       FILE *out)
{
    int pad = (int)(width - table_width(text));
    bool last = column + 1 == t->column_count;
    if (t->columns[column].align == TABLE_RIGHT)
        fprintf(out, "%*s%s%s", pad, "", text, last ? "\n" : "  ");
    else if (last)
        fprintf(out, "%s\n", text);
    else
        fprintf(out, "%s%*s  ", text, pad, "");
}

void table_print(const struct table *t, FILE *out)
{
    ASSERT(t->cell_count % t->column_count == 0);
    size_t *widths = dog_alloc(t->column_count * sizeof(*widths));
    for (unsigned c = 0; c < t->column_count; c++)
        widths[c] = table_width(t->columns[c].title);
    for (size_t i = 0; i < t->cell_count; i++)
        widths[i % t->column_count] = MAX(widths[i % t->column_count], table_width(t->cells[i]));
    for (unsigned c = 0; c < t->column_count; c++)
        print_cell(t, c, t->columns[c].title, widths[c], out);
    for (size_t i = 0; i < t->cell_count; i++)
        print_cell(t, (unsigned)(i % t->column_count), t->cells[i], widths[i % t->column_count],
                   out);
    dog_free(widths);
}

void table_free(struct table *t)
{
    for (size_t i = 0; i < t->cell_count; i++)
        dog_free(t->cells[i]);
    dog_free(t->cells);
    dog_free(t);
}
