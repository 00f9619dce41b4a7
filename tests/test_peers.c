/* SPDX-License-Identifier: Apache-2.0 */
/* Matrices that other tools packed, in data/peers (make_peers.py has the making): described from their configuration, decoded to the very
 * floats that their code gave, and packed again to the very bytes. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "container.h"
#include "peer.h"

#define assert_ok(expr)                                                                                                \
    do {                                                                                                               \
        rq_status status_ = (expr);                                                                                    \
        if (status_ != RQ_OK) fail_msg("%s: %s: %s", file, rq_status_text(status_), rq_last_error());                  \
    } while (0)

static char *text_of(const rq_store *s, const char *key) {
    const char *text;
    int64_t n;
    assert_true(rq_meta_str(s, key, &text, &n));
    char *copy = strndup(text, (size_t)n);
    assert_non_null(copy);
    return copy;
}

/* What was loaded, against what the tool decoded. */
static void check_decoded(const char *file, const rq_store *s, const rq_packed *p) {
    const rq_tensor *t = rq_store_find(s, "W.decoded");
    assert_non_null(t);
    assert_true(t->rank == 2 && t->shape[0] == p->n_out && t->shape[1] == p->n_in && t->dtype == RQ_F32);
    float *row = malloc((size_t)p->n_in * sizeof *row), want;
    assert_non_null(row);
    for (int64_t i = 0; i < p->n_out; ++i) {
        rq_unpack_row(p, i, row);
        for (int64_t j = 0; j < p->n_in; ++j) {
            memcpy(&want, (const char *)t->data + (i * p->n_in + j) * 4, 4);
            if (row[j] != want)
                fail_msg("%s: weight [%lld, %lld] is %.9g, the tool has %.9g", file, (long long)i, (long long)j,
                         (double)row[j], (double)want);
        }
    }
    free(row);
}

/* What our writer makes of it, against what the tool packed. */
static void check_packed(const char *file, const rq_store *s, const rq_packed *p, const char *to) {
    const rq_peer_ops *peer = rq_peer_by_name(to);
    rq_packed_file f;
    json_t *settings;
    assert_non_null(peer);
    assert_ok(peer->pack(&f, &settings, "W", p));
    assert_int_equal(f.n_tensors, rq_store_count(s) - 1); /* all but what was decoded */
    for (int i = 0; i < f.n_tensors; ++i) {
        const rq_out_tensor *mine = &f.tensor[i];
        const rq_tensor *theirs = rq_store_find(s, mine->name);
        if (!theirs) fail_msg("%s: there is no %s", file, mine->name);
        if (mine->dtype != theirs->dtype || mine->rank != theirs->rank ||
            memcmp(mine->shape, theirs->shape, (size_t)mine->rank * sizeof *mine->shape) != 0)
            fail_msg("%s: %s has another type or shape", file, mine->name);
        unsigned char *bytes = malloc((size_t)theirs->n_bytes);
        assert_non_null(bytes);
        assert_ok(mine->fill(mine->arg, bytes, theirs->n_bytes));
        if (memcmp(bytes, theirs->data, (size_t)theirs->n_bytes) != 0) fail_msg("%s: %s differs", file, mine->name);
        free(bytes);
    }
    json_decref(settings);
    rq_packed_file_free(&f);
}

/* In our own layout it decodes to the same. */
static void check_own(const char *file, const rq_store *s, const rq_packed *p) {
    rq_packed_file f;
    const char *tmp = getenv("TMPDIR");
    char *entry, path[300];
    rq_store *own;
    rq_packed back;
    json_t *meta = json_object(), *linears = json_object();
    snprintf(path, sizeof path, "%.200s/requite-peers-XXXXXX", tmp ? tmp : "/tmp");
    const int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_ok(rq_packed_file_of(&f, &entry, "W", p));
    assert_ok(rq_safetensors_write(path, f.tensor, f.n_tensors, NULL, 0));
    json_object_set_new(linears, "W", json_loads(entry, 0, NULL));
    json_object_set_new(meta, "linears", linears);
    assert_ok(rq_store_open(&own, path));
    assert_ok(rq_container_load(&back, own, meta, "W"));
    check_decoded(file, s, &back);
    rq_packed_free(&back);
    rq_store_close(own);
    json_decref(meta);
    free(entry);
    rq_packed_file_free(&f);
    remove(path);
    fclose(fdopen(fd, "r"));
}

static void check_file(const char *folder, const char *file) {
    rq_store *s;
    json_t *meta;
    rq_packed p;
    char *path = rq_path_join(folder, file);
    assert_non_null(path);
    assert_ok(rq_store_open(&s, path));
    char *config_text = text_of(s, "config"), *to = text_of(s, "to");
    json_t *config = json_loads(config_text, 0, NULL);
    assert_non_null(config);
    assert_ok(rq_peer_metadata(&meta, config, s));
    assert_int_equal(json_object_size(json_object_get(meta, "linears")), 1);
    assert_ok(rq_container_load(&p, s, meta, "W"));
    check_decoded(file, s, &p);
    if (*to) check_packed(file, s, &p, to);
    check_own(file, s, &p);
    rq_packed_free(&p);
    json_decref(meta);
    json_decref(config);
    free(config_text);
    free(to);
    rq_store_close(s);
    free(path);
}

static void test_vectors(void **state) {
    (void)state;
    const char *folder = RQ_TEST_DIR "/data/peers";
    DIR *dir = opendir(folder);
    int n = 0;
    assert_non_null(dir);
    for (const struct dirent *e; (e = readdir(dir));) {
        if (!strstr(e->d_name, ".safetensors")) continue;
        check_file(folder, e->d_name);
        ++n;
    }
    closedir(dir);
    print_message("%d matrices of other tools\n", n);
    assert_true(n >= 31);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_vectors)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
