/* SPDX-License-Identifier: Apache-2.0 */
#include "ranks.h"

#include <unistd.h>

#include "model.h"

rq_status rq_ranks_bcast(const rq_ranks *r, void *data, int64_t n_bytes, int root) {
    return rq_n_ranks(r) > 1 && n_bytes > 0 ? r->bcast(r->user, data, n_bytes, root) : RQ_OK;
}

rq_status rq_ranks_sum(const rq_ranks *r, double *x, int64_t n) {
    return rq_n_ranks(r) > 1 && n > 0 ? r->sum(r->user, x, n) : RQ_OK;
}

rq_status rq_ranks_any(const rq_ranks *r, bool *flag) {
    double n = *flag;
    rq_status status = rq_ranks_sum(r, &n, 1);
    *flag = n > 0;
    return status;
}

/* The file of rank `from` to those that want it. */
static rq_status share_file(const rq_ranks *r, const char *path, int from, bool wanted) {
    rq_status status = RQ_OK;
    const bool mine = wanted;
    char *bytes = NULL;
    int64_t n = 0;
    RQ_TRY(rq_ranks_any(r, &wanted));
    if (!wanted) goto done;
    if (r->rank == from) RQ_TRY(rq_read_file(path, INT64_MAX, &bytes, &n));
    RQ_TRY(rq_ranks_bcast(r, &n, sizeof n, from));
    if (r->rank != from) RQ_TRY(RQ_NEW(bytes, n));
    RQ_TRY(rq_ranks_bcast(r, bytes, n, from));
    if (mine) RQ_TRY(rq_write_file(path, bytes, n));
done:
    free(bytes);
    return status;
}

rq_status rq_ranks_file_to_first(const rq_ranks *r, const char *path, int from) {
    if (from == 0 || rq_n_ranks(r) == 1) return RQ_OK;
    return share_file(r, path, from, r->rank == 0 && access(path, F_OK) != 0);
}

rq_status rq_ranks_file_from_first(const rq_ranks *r, const char *path, bool *found) {
    rq_status status = RQ_OK;
    *found = access(path, F_OK) == 0;
    RQ_TRY(rq_ranks_bcast(r, found, sizeof *found, 0));
    if (*found && rq_n_ranks(r) > 1) RQ_TRY(share_file(r, path, 0, access(path, F_OK) != 0));
done:
    return status;
}
