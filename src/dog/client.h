/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dog's connection to a sheep: blocking, one request at a time.
 *
 * K1 What a server sends is bounded and checked like everything from outside; a violation is an
 * error text.
 */
#pragma once
#include <jansson.h>
#include "wire/admin.h"

struct client;
#define CLIENT_ERROR_SIZE   600
#define CLIENT_ADDRESS_SIZE 256

/* "unix:/path", "tcp:HOST:PORT", "HOST:PORT", "HOST" (port 7000; IPv6 in brackets) -> the first two
 * forms. 0 or -EINVAL. */
int client_address(const char *text, const char *port, char ret[CLIENT_ADDRESS_SIZE]);

/* Connects and greets. 0; a negative errno and error text. *ret is owned. */
int client_open(const char *address, struct client **ret, char error[CLIENT_ERROR_SIZE]);
void client_close(struct client *c);

/* One frame received. */
struct client_frame {
    enum admin_kind kind;
    json_t *json;        /* ADMIN_JSON: an object, owned by the receiver */
    const uint8_t *data; /* ADMIN_DATA: borrowed until the next receive */
    uint32_t length;
    uint64_t zeros; /* ADMIN_ZEROS */
};
/* 0; -ECONNRESET, -EBADMSG and error text. */
int client_receive(struct client *c, struct client_frame *ret, char error[CLIENT_ERROR_SIZE]);
int client_send(struct client *c, enum admin_kind kind, const void *payload, uint32_t length,
                char error[CLIENT_ERROR_SIZE]);
int client_send_json(struct client *c, const json_t *json, char error[CLIENT_ERROR_SIZE]);
/* True when something arrived: a server that answers before the end of our data has failed. */
bool client_readable(const struct client *c);
