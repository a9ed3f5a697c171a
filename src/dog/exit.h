/* SPDX-License-Identifier: Apache-2.0 */
/* Exit codes of dog: those of the first Sheepdog's, on which scripts rely. */
#pragma once

enum dog_exit {
    DOG_OK = 0,
    DOG_FAILURE = 1, /* the operation failed, or a check found something */
    DOG_SYSTEM = 2,  /* no sheep could be reached, or the system failed us */
    DOG_EXISTS = 3,
    DOG_FULL = 4,
    DOG_MISSING = 5,
    DOG_USAGE = 64,
};

/* For a negative errno that a sheep answered. */
enum dog_exit dog_exit_for(int negative_errno);
