/* SPDX-License-Identifier: Apache-2.0 */
/* The closed list of errors that cross module borders: negative errno values with one meaning each.
 */
#pragma once
#include <errno.h>

/*
 * -EINVAL     the caller's arguments make no sense (a wrong option, an impossible size)
 * -ENOENT     the object, volume, snapshot, key … does not exist
 * -EEXIST     it exists already
 * -ENOSPC     no space for data that allocates; removal and discard still work
 * -ESTALE     a write named a version that the object is not at; a sender with an old epoch or
 *             term; a session that is not in the map; a compare-and-set that lost
 * -EUCLEAN    stored bytes do not match their checksum (bad data, never returned)
 * -EIO        the device or the network path failed
 * -ECONNRESET the peer went away; the request may or may not have been done
 * -ETIMEDOUT  a deadline passed; the request may or may not have been done
 * -EAGAIN     cannot be served now (epoch change, waiting for a node); try again
 * -EBUSY      held by someone else (lease, lock, pin, port)
 * -EROFS      the volume or snapshot cannot be written
 * -ECANCELED  shutting down
 * -EBADMSG    malformed message, record or file
 * -EPROTO     unknown version, or a feature that this version does not know
 * -ENAMETOOLONG, -EFBIG, -ENOMEM, -EPERM: as their names say
 * -EMEDIUMTYPE the file or device is not what it should be (not a store, of another cluster)
 */

/* Short text for one of the above (or any errno), for people. Never NULL. */
const char *err_text(int negative_errno);
