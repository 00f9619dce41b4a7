/* SPDX-License-Identifier: Apache-2.0 */
/* The machine, the clock and the records behind every benchmark (harness.h). */
#include "harness.h"

#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static bench_clock clock_read = BENCH_WALL;

void bench_set_clock(bench_clock clock) { clock_read = clock; }

double bench_seconds(void) {
    struct timespec t;
    clock_gettime(clock_read == BENCH_CPU ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the machine ------------------------------------------------------------------------------------------------------ */

static void first_line(char *out, size_t size, FILE *f, const char *after) {
    char line[512];
    out[0] = 0;
    while (f && fgets(line, sizeof line, f)) {
        const char *value = after ? strstr(line, after) : line;
        if (!value) continue;
        if (after) value = strchr(line, ':') ? strchr(line, ':') + 2 : "";
        snprintf(out, size, "%.*s", (int)strcspn(value, "\n"), value);
        return;
    }
}

/* The kernel knows what one core can reach; the C library's figure may be that of a whole socket. */
static int64_t last_level_cache(void) {
    FILE *f = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
    long long kib = 0;
    if (f) {
        if (fscanf(f, "%lldK", &kib) != 1) kib = 0;
        fclose(f);
    }
    if (kib > 0) return kib << 10;
    int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return bytes > 0 ? bytes : 32 << 20; /* not known: as large as common ones */
}

void bench_machine_look(bench_machine *m) {
    memset(m, 0, sizeof *m);
    FILE *f = fopen("/proc/cpuinfo", "r");
    first_line(m->cpu, sizeof m->cpu, f, "model name");
    if (f) fclose(f);
    f = popen("git rev-parse --short=12 HEAD 2>/dev/null", "r");
    first_line(m->git, sizeof m->git, f, NULL);
    if (f) pclose(f);
    struct utsname u;
    if (uname(&u) == 0)
        snprintf(m->kernel, sizeof m->kernel, "%.40s %.*s", u.sysname, (int)strcspn(u.release, "-"), u.release);
    time_t now = time(NULL);
    struct tm tm;
    if (gmtime_r(&now, &tm)) strftime(m->date, sizeof m->date, "%Y-%m-%d", &tm);
    m->n_cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    m->n_threads = rq_get_threads();
    m->llc_bytes = last_level_cache();
    if (getloadavg(&m->load_before, 1) != 1) m->load_before = -1;
}

typedef uint64_t lanes __attribute__((vector_size(64)));

typedef struct read_job {
    const lanes *data;
    int64_t n, n_parts;
    uint64_t *sums;
} read_job;

static void read_body(void *arg, int64_t i) {
    const read_job *j = arg;
    int64_t begin = j->n / j->n_parts * i, end = j->n / j->n_parts * (i + 1);
    lanes a = {0}, b = {0}, c = {0}, d = {0};
    for (int64_t k = begin; k + 4 <= end; k += 4) {
        a += j->data[k];
        b += j->data[k + 1];
        c += j->data[k + 2];
        d += j->data[k + 3];
    }
    a += b + c + d;
    for (int l = 0; l < 8; ++l) j->sums[i] += a[l];
}

rq_status bench_measure_read(bench_machine *m) {
    rq_status status = RQ_OK;
    enum { PARTS = 64, PASSES = 12 };
    int64_t bytes = rq_max_i64(256 << 20, 8 * m->llc_bytes);
    lanes *data = NULL;
    uint64_t sums[PARTS] = {0};
    RQ_TRY(rq_alloc((void **)&data, bytes, 1));
    memset(data, 1, (size_t)bytes);
    read_job j = {data, bytes / (int64_t)sizeof *data, PARTS, sums};
    double best = 1e30;
    for (int pass = 0; pass < PASSES; ++pass) {
        double t = bench_seconds();
        rq_parallel_for(PARTS, read_body, &j);
        t = bench_seconds() - t;
        if (t < best) best = t;
    }
    if (sums[0] == 0) RQ_FAIL(RQ_ERR_NUMERIC, "reading memory gave nothing");
    m->read_gbs = (double)(j.n / PARTS * PARTS * (int64_t)sizeof *data) / best * 1e-9;
done:
    free(data);
    return status;
}

/* ---- timing ----------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void bench_time(bench_times *t, bench_fn fn, void *arg, double seconds, int min_samples) {
    enum { MOST = 4000 };
    static double sample[MOST];
    int64_t i = 0;
    double start = bench_seconds();
    do fn(arg, i++);
    while (bench_seconds() - start < 0.1 * seconds);
    start = bench_seconds();
    for (t->n = 0; t->n < MOST && (t->n < min_samples || bench_seconds() - start < seconds); ++t->n) {
        double begin = bench_seconds();
        fn(arg, i++);
        sample[t->n] = bench_seconds() - begin;
    }
    qsort(sample, (size_t)t->n, sizeof *sample, by_value);
    t->med_us = sample[t->n / 2] * 1e6;
    t->p20_us = sample[t->n / 5] * 1e6;
    t->p80_us = sample[t->n * 4 / 5] * 1e6;
}

/* ---- records ---------------------------------------------------------------------------------------------------------- */

void bench_record_machine(json_t *record, const bench_machine *m, const char *flags) {
    json_object_set_new(record, "schema_version", json_integer(BENCH_SCHEMA_VERSION));
    json_object_set_new(record, "date", json_string(m->date));
    json_object_set_new(record, "cpu", json_string(m->cpu));
    json_object_set_new(record, "cores", json_integer(m->n_cores));
    json_object_set_new(record, "threads", json_integer(m->n_threads));
    json_object_set_new(record, "os", json_string(m->kernel));
    json_object_set_new(record, "llc_bytes", json_integer(m->llc_bytes));
    json_object_set_new(record, "load_before", json_real(m->load_before));
    json_object_set_new(record, "clock", json_string(clock_read == BENCH_CPU ? "cpu" : "wall"));
    json_object_set_new(record, "read_gbs", json_real(m->read_gbs));
    json_object_set_new(record, "version", json_string(RQ_VERSION));
    json_object_set_new(record, "git", m->git[0] ? json_string(m->git) : json_null());
    json_object_set_new(record, "compiler", json_string(__VERSION__));
    json_object_set_new(record, "flags", json_string(flags));
}

rq_status bench_write_json(const char *path, const json_t *records) {
    FILE *f = fopen(path, "w");
    if (!f) return rq_fail(RQ_ERR_IO, "%s: cannot be written", path);
    int bad = fputs("[\n", f) < 0;
    for (size_t i = 0; i < json_array_size(records); ++i) { /* a record a line: short, and diffs stay readable */
        bad |= json_dumpf(json_array_get(records, i), f, JSON_COMPACT | JSON_REAL_PRECISION(6)) != 0;
        bad |= fputs(i + 1 < json_array_size(records) ? ",\n" : "\n", f) < 0;
    }
    bad |= fputs("]\n", f) < 0;
    bad |= fclose(f) != 0;
    return bad ? rq_fail(RQ_ERR_IO, "%s: writing failed", path) : RQ_OK;
}

rq_status bench_write_csv(const char *path, const json_t *records) {
    FILE *f = fopen(path, "w");
    if (!f) return rq_fail(RQ_ERR_IO, "%s: cannot be written", path);
    const char *key;
    json_t *value;
    int n = 0;
    json_object_foreach(json_array_get(records, 0), key, value) fprintf(f, "%s%s", n++ ? "," : "", key);
    fputc('\n', f);
    for (size_t i = 0; i < json_array_size(records); ++i) {
        n = 0;
        json_object_foreach(json_array_get(records, i), key, value) { /* every record has the same keys in one order */
            char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
            fprintf(f, "%s%s", n++ ? "," : "", text && !json_is_null(value) ? text : "");
            free(text);
        }
        fputc('\n', f);
    }
    return fclose(f) ? rq_fail(RQ_ERR_IO, "%s: writing failed", path) : RQ_OK;
}

const json_t *bench_find(const json_t *records, const json_t *like, const char *const *keys, int n_keys) {
    for (size_t i = 0; i < json_array_size(records); ++i) {
        const json_t *r = json_array_get(records, i);
        int same = 0;
        for (int k = 0; k < n_keys; ++k)
            same += json_equal(json_object_get(r, keys[k]), json_object_get(like, keys[k]));
        if (same == n_keys) return r;
    }
    return NULL;
}

void bench_join_flags(char *out, size_t size, int argc, char **argv) {
    size_t n = 0;
    out[0] = 0;
    for (int i = 1; i < argc; ++i) {
        int more = snprintf(out + n, size - n, "%s%s", i > 1 ? " " : "", argv[i]);
        if (more < 0 || (size_t)more >= size - n) return; /* cut there */
        n += (size_t)more;
    }
}

int bench_parse_ints(const char *text, int64_t min, int64_t max, int64_t *out, int max_n) {
    int n = 0;
    for (const char *p = text;; ++p) {
        char *end;
        long long v = strtoll(p, &end, 10);
        if (end == p || v < min || v > max || n == max_n || (*end && *end != ',')) return -1;
        out[n++] = v;
        if (!*end) return n;
        p = end;
    }
}
