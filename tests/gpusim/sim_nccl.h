/* SPDX-License-Identifier: Apache-2.0 */
/* How the ranks of a communicator of the NCCL stand-in reach each other: threads and processes alike over POSIX shared memory.
 * A message is an object of its own, named after the communicator, its place in the order, and who sent it. */
#ifndef RQ_GPUSIM_SIM_NCCL_H
#define RQ_GPUSIM_SIM_NCCL_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SIM_MAX_RANKS = 64, SIM_ID_BYTES = 40 };

typedef struct sim_link {
    char id[SIM_ID_BYTES];
    int rank, n;
    struct sim_board *board; /* shared: who has posted what */
} sim_link;

/* What a call was, so that ranks can be told to disagree. */
typedef struct sim_envelope {
    uint64_t count;
    int32_t kind, type, op, root;
} sim_envelope;
typedef struct sim_message {
    sim_envelope is;
    uint64_t bytes;
    uint32_t readers; /* so far; the last one removes the object */
    uint32_t unused;
} sim_message; /* the bytes follow */

bool sim_link_join(sim_link *l, const char *id, int n, int rank, const char **why);
void sim_link_leave(sim_link *l);

/* Collectives. A rank posts number 1, 2, 3... and they can be read when all have posted. */
bool sim_link_post(sim_link *l, uint64_t number, const sim_envelope *e, const void *data, size_t bytes);
bool sim_link_all_posted(const sim_link *l, uint64_t number);
/* Messages from one rank to another, numbered for each pair. Both sides must have come. */
bool sim_link_send(sim_link *l, int to, uint64_t number, const sim_envelope *e, const void *data, size_t bytes);
void sim_link_want(sim_link *l, int from, uint64_t number);
bool sim_link_is_wanted(const sim_link *l, int to, uint64_t number);
bool sim_link_is_sent(const sim_link *l, int from, uint64_t number);

/* The message of a collective (from any rank, our own too), or from a rank to us; NULL: it is gone. */
const sim_message *sim_link_open(sim_link *l, int from, uint64_t number, bool collective);
void sim_link_close(sim_link *l, const sim_message *m, int from, uint64_t number, bool collective);

#endif
