/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of text with aligned columns. */
#pragma once
#include <stdio.h>
#include "base/check.h"

enum table_align { TABLE_LEFT, TABLE_RIGHT };
struct table_column {
    const char *title;
    enum table_align align;
};
struct table;

/* `columns` are borrowed. Returns owned; ends the program when out of memory, as all of dog does.
 */
struct table *table_new(const struct table_column *columns, unsigned column_count);
/* Appends the next cell, row by row; the text is copied, and control characters in it become '?'.
 */
void table_cell(struct table *t, const char *text);
/* Title line and all rows; the last column of a row is not padded. */
void table_print(const struct table *t, FILE *out);
void table_free(struct table *t);
/* Columns of a terminal that UTF-8 text takes, one per character. */
size_t table_width(const char *text);
