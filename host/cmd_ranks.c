/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks of the command: processes that mpirun or Slurm started together, connected by MPI when the build has it (RQ_MPI). MPI is not
 * touched in a process that was started alone. */
#ifdef RQ_HAVE_MPI
#include <mpi.h>
#endif
#include <sched.h>
#include <unistd.h>

#include "cmd.h"
#include "ranks.h"

/* How many processes the launcher says it started: Open MPI's mpirun, PMI (MPICH, Intel MPI, Slurm), or Slurm's own with PMIx. */
static int launched(void) {
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"};
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        const char *text = getenv(names[i]), *n = i == 2 ? getenv("SLURM_NTASKS") : text;
        if (text && n) return atoi(n);
    }
    return 0;
}

#ifdef RQ_HAVE_MPI

enum { PIECE = 1 << 30 }; /* MPI counts are int */

static rq_status failed(const char *call, int error) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int n;
    MPI_Error_string(error, text, &n);
    return rq_fail(RQ_ERR_DEVICE, "%s: %s", call, text);
}

static rq_status bcast(void *user, void *data, int64_t n_bytes, int root) {
    (void)user;
    for (int64_t at = 0; at < n_bytes; at += PIECE) {
        int n = (int)rq_min_i64(PIECE, n_bytes - at);
        int error = MPI_Bcast((char *)data + at, n, MPI_BYTE, root, MPI_COMM_WORLD);
        if (error != MPI_SUCCESS) return failed("MPI_Bcast", error);
    }
    return RQ_OK;
}

static rq_status sum(void *user, double *x, int64_t n) {
    (void)user;
    for (int64_t at = 0; at < n; at += PIECE / 8) {
        int count = (int)rq_min_i64(PIECE / 8, n - at);
        int error = MPI_Allreduce(MPI_IN_PLACE, x + at, count, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
        if (error != MPI_SUCCESS) return failed("MPI_Allreduce", error);
    }
    return RQ_OK;
}

static rq_ranks ranks = {.n_ranks = 1, .bcast = bcast, .sum = sum};
static int n_local = 1; /* ranks on this machine */

bool cmd_ranks_start(int *argc, char ***argv) {
    MPI_Comm local;
    int level;
    if (launched() < 1) return true;
    if (MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &level) != MPI_SUCCESS) {
        fprintf(stderr, "requite: MPI does not start\n");
        return false;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &ranks.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks.n_ranks);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    MPI_Comm_size(local, &n_local);
    MPI_Comm_rank(local, &ranks.local);
    MPI_Comm_free(&local);
    return true;
}

/* A rank that fails takes the others with it: they may be waiting for it. */
void cmd_ranks_end(int code) {
    int on = 0;
    MPI_Initialized(&on);
    if (!on) return;
    (void)fflush(NULL);
    if (code != EXIT_OK && code != EXIT_RESUMABLE && ranks.n_ranks > 1) MPI_Abort(MPI_COMM_WORLD, code);
    MPI_Finalize();
}

const rq_ranks *cmd_ranks(void) { return ranks.n_ranks > 1 ? &ranks : NULL; }

int cmd_ranks_threads(void) {
    cpu_set_t set;
    int all = (int)sysconf(_SC_NPROCESSORS_ONLN), own = all;
    if (sched_getaffinity(0, sizeof set, &set) == 0) own = CPU_COUNT(&set);
    return own < all ? own : all / n_local > 0 ? all / n_local : 1; /* bound to cores by the launcher, or not */
}

#else

bool cmd_ranks_start(int *argc, char ***argv) {
    (void)argc;
    (void)argv;
    if (launched() <= 1) return true;
    fprintf(stderr, "requite: one of %d processes, but built without MPI: configure with -DRQ_MPI=ON\n", launched());
    return false;
}
void cmd_ranks_end(int code) { (void)code; }
const rq_ranks *cmd_ranks(void) { return NULL; }
int cmd_ranks_threads(void) { return 0; }

#endif
