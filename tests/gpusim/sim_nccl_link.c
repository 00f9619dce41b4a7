/* SPDX-License-Identifier: Apache-2.0 */
/* Shared memory between the ranks of a communicator. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim_nccl.h"

typedef struct sim_board {
    uint32_t n;            /* ranks; 0 until the first came */
    uint32_t joined, left; /* how many */
    uint32_t here[SIM_MAX_RANKS];
    uint64_t posted[SIM_MAX_RANKS];
    uint64_t sent[SIM_MAX_RANKS][SIM_MAX_RANKS];   /* [from][to] */
    uint64_t wanted[SIM_MAX_RANKS][SIM_MAX_RANKS]; /* [from][to] */
} sim_board;

enum { NAME_BYTES = 128 };

static void board_name(const sim_link *l, char *name) { snprintf(name, NAME_BYTES, "/gpusim-%s", l->id); }

static void message_name(const sim_link *l, char *name, int from, int to, uint64_t number) {
    if (to < 0) {
        snprintf(name, NAME_BYTES, "/gpusim-%s-c%llu-%d", l->id, (unsigned long long)number, from);
    } else {
        snprintf(name, NAME_BYTES, "/gpusim-%s-p%llu-%d-%d", l->id, (unsigned long long)number, from, to);
    }
}

/* Maps the whole object; NULL when it cannot be. bytes: its size, set when create. */
static void *map(const char *name, bool create, bool fresh, size_t *bytes) {
    int fd = shm_open(name, O_RDWR | (create ? O_CREAT : 0) | (fresh ? O_EXCL : 0), 0600);
    if (fd < 0) return NULL;
    struct stat st;
    void *p = MAP_FAILED;
    if (create ? ftruncate(fd, (off_t)*bytes) == 0 : fstat(fd, &st) == 0) {
        if (!create) *bytes = (size_t)st.st_size;
        p = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    close(fd);
    return p == MAP_FAILED ? NULL : p;
}

bool sim_link_join(sim_link *l, const char *id, int n, int rank, const char **why) {
    memset(l, 0, sizeof *l);
    snprintf(l->id, sizeof l->id, "%s", id);
    l->n = n;
    l->rank = rank;
    char name[NAME_BYTES];
    board_name(l, name);
    size_t bytes = sizeof(sim_board);
    sim_board *b = map(name, true, false, &bytes);
    *why = "shared memory cannot be had";
    if (!b) return false;
    uint32_t none = 0;
    bool first = __atomic_compare_exchange_n(&b->n, &none, (uint32_t)n, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    *why = "the ranks do not agree how many they are";
    bool good = first || none == (uint32_t)n;
    if (good && __atomic_exchange_n(&b->here[rank], 1, __ATOMIC_SEQ_CST)) {
        *why = "two ranks have one number";
        good = false;
    }
    if (!good) {
        munmap(b, sizeof *b);
        return false;
    }
    l->board = b;
    /* All have it open: its name is needed no more. */
    if (__atomic_add_fetch(&b->joined, 1, __ATOMIC_SEQ_CST) == (uint32_t)n) shm_unlink(name);
    return true;
}

void sim_link_leave(sim_link *l) {
    if (!l->board) return;
    uint32_t left = __atomic_add_fetch(&l->board->left, 1, __ATOMIC_SEQ_CST);
    if (left == __atomic_load_n(&l->board->joined, __ATOMIC_SEQ_CST) && left < (uint32_t)l->n) {
        char name[NAME_BYTES]; /* the others never came */
        board_name(l, name);
        shm_unlink(name);
    }
    munmap(l->board, sizeof *l->board);
    l->board = NULL;
}

static bool put(const sim_link *l, int to, uint64_t number, const sim_envelope *e, const void *data, size_t bytes) {
    char name[NAME_BYTES];
    message_name(l, name, l->rank, to, number);
    size_t all = sizeof(sim_message) + bytes;
    sim_message *m = map(name, true, true, &all);
    if (!m) return false;
    m->is = *e;
    m->bytes = bytes;
    if (bytes) memcpy(m + 1, data, bytes);
    munmap(m, all);
    return true;
}

bool sim_link_post(sim_link *l, uint64_t number, const sim_envelope *e, const void *data, size_t bytes) {
    if (!put(l, -1, number, e, data, bytes)) return false;
    __atomic_store_n(&l->board->posted[l->rank], number, __ATOMIC_RELEASE);
    return true;
}

bool sim_link_all_posted(const sim_link *l, uint64_t number) {
    for (int r = 0; r < l->n; ++r) {
        if (__atomic_load_n(&l->board->posted[r], __ATOMIC_ACQUIRE) < number) return false;
    }
    return true;
}

bool sim_link_send(sim_link *l, int to, uint64_t number, const sim_envelope *e, const void *data, size_t bytes) {
    if (!put(l, to, number, e, data, bytes)) return false;
    __atomic_store_n(&l->board->sent[l->rank][to], number, __ATOMIC_RELEASE);
    return true;
}

void sim_link_want(sim_link *l, int from, uint64_t number) {
    __atomic_store_n(&l->board->wanted[from][l->rank], number, __ATOMIC_RELEASE);
}

bool sim_link_is_wanted(const sim_link *l, int to, uint64_t number) {
    return __atomic_load_n(&l->board->wanted[l->rank][to], __ATOMIC_ACQUIRE) >= number;
}

bool sim_link_is_sent(const sim_link *l, int from, uint64_t number) {
    return __atomic_load_n(&l->board->sent[from][l->rank], __ATOMIC_ACQUIRE) >= number;
}

const sim_message *sim_link_open(sim_link *l, int from, uint64_t number, bool collective) {
    char name[NAME_BYTES];
    size_t bytes = 0;
    message_name(l, name, from, collective ? -1 : l->rank, number);
    return map(name, false, false, &bytes);
}

void sim_link_close(sim_link *l, const sim_message *m, int from, uint64_t number, bool collective) {
    sim_message *own = (sim_message *)(uintptr_t)m;
    uint32_t readers = __atomic_add_fetch(&own->readers, 1, __ATOMIC_SEQ_CST);
    if (readers == (uint32_t)(collective ? l->n : 1)) {
        char name[NAME_BYTES];
        message_name(l, name, from, collective ? -1 : l->rank, number);
        shm_unlink(name);
    }
    munmap(own, sizeof *own + own->bytes);
}
