/* SPDX-License-Identifier: Apache-2.0 */
/* k-means (host/kmeans.h): seconds of a whole run from given or sampled centroids, points per second and iteration, loss. Points are
 * random or come from a file, so that another implementation can be given the same ones: bench/kmeans_faiss.py. */
#include <getopt.h>

#include "harness.h"
#include "kmeans_impl.h"
#include "random.h"

enum { MAX_KS = 8, MAX_REPS = 101 };

typedef struct job {
    rq_kmeans_opt o;
    int64_t n;
    float *x, *w, *start, *c;
    const char *x_path, *start_path, *out_path;
    int reps;
    rq_status status;
} job;

static rq_status read_floats(const char *path, float *v, int64_t count) {
    FILE *f = fopen(path, "rb");
    if (!f) return rq_fail(RQ_ERR_IO, "%s cannot be read", path);
    int64_t got = (int64_t)fread(v, sizeof *v, (size_t)count, f);
    fclose(f);
    if (got != count) {
        return rq_fail(RQ_ERR_INPUT, "%s holds %lld floats, %lld are wanted", path, (long long)got, (long long)count);
    }
    return RQ_OK;
}

static rq_status write_floats(const char *path, const float *v, int64_t count) {
    FILE *f = fopen(path, "wb");
    if (!f) return rq_fail(RQ_ERR_IO, "%s cannot be written", path);
    bool ok = (int64_t)fwrite(v, sizeof *v, (size_t)count, f) == count;
    ok &= fclose(f) == 0;
    return ok ? RQ_OK : rq_fail(RQ_ERR_IO, "%s: write failed", path);
}

static void fill_row(void *arg, int64_t i) { /* nearly normal numbers: four uniform ones */
    job *j = arg;
    int d = j->o.d;
    for (int64_t e = i * d; e < (i + 1) * d; ++e) {
        double s = -2;
        for (uint64_t q = 0; q < 4; ++q) s += rq_random_unit(j->o.seed, 4 * (uint64_t)e + q);
        j->x[e] = (float)(s * 1.7320508);
        if (j->o.weights == RQ_KMEANS_PER_COMPONENT) j->w[e] = (float)rq_random_unit(j->o.seed + 1, (uint64_t)e);
    }
    if (j->o.weights == RQ_KMEANS_PER_POINT) j->w[i] = (float)rq_random_unit(j->o.seed + 1, (uint64_t)i);
}

static rq_status make(job *j) {
    rq_status status = RQ_OK;
    int64_t n_w = j->o.weights == RQ_KMEANS_PLAIN ? 0 : j->o.weights == RQ_KMEANS_PER_POINT ? j->n : j->n * j->o.d;
    RQ_TRY(RQ_NEW(j->x, j->n * j->o.d));
    if (n_w) RQ_TRY(RQ_NEW(j->w, n_w));
    rq_parallel_for(j->n, fill_row, j);
    if (j->x_path) RQ_TRY(read_floats(j->x_path, j->x, j->n * j->o.d));
done:
    return status;
}

static int by_time(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static rq_status run(json_t *records, const bench_machine *m, const char *flags, job *j, int64_t k) {
    rq_status status = RQ_OK;
    double seconds[MAX_REPS], loss = 0;
    int64_t size = k * j->o.d;
    j->o.k = k;
    RQ_TRY(RQ_NEW(j->c, size));
    RQ_TRY(RQ_NEW(j->start, size));
    if (j->start_path) RQ_TRY(read_floats(j->start_path, j->start, size));
    for (int r = 0; r < j->reps; ++r) {
        if (j->start_path) memcpy(j->c, j->start, (size_t)size * sizeof *j->c);
        double t = rq_seconds();
        RQ_TRY(rq_kmeans(j->c, NULL, NULL, j->x, j->w, j->n, &j->o, j->start_path != NULL));
        seconds[r] = rq_seconds() - t;
    }
    qsort(seconds, (size_t)j->reps, sizeof *seconds, by_time);
    RQ_TRY(rq_kmeans_assign(NULL, &loss, j->x, j->w, j->n, j->c, &j->o));
    double med = seconds[j->reps / 2], rate = (double)j->n * j->o.n_iter / med;
    printf("%9lld %3d %6lld %4d %9.3f %9.3f %10.2f %14.6f\n", (long long)j->n, j->o.d, (long long)k, j->o.n_iter, med,
           seconds[0], rate * 1e-6, loss / (double)j->n);
    fflush(stdout);
    if (j->out_path) RQ_TRY(write_floats(j->out_path, j->c, size));
    json_t *r = json_object();
    bench_record_machine(r, m, flags);
    json_object_set_new(r, "name", json_string("requite"));
    json_object_set_new(r, "impl", json_string(rq_kmeans_pick()->name));
    json_object_set_new(r, "weights", json_integer(j->o.weights));
    json_object_set_new(r, "n", json_integer(j->n));
    json_object_set_new(r, "d", json_integer(j->o.d));
    json_object_set_new(r, "k", json_integer(k));
    json_object_set_new(r, "n_iter", json_integer(j->o.n_iter));
    json_object_set_new(r, "samples", json_integer(j->reps));
    json_object_set_new(r, "t_med_s", json_real(med));
    json_object_set_new(r, "t_min_s", json_real(seconds[0]));
    json_object_set_new(r, "points_per_s", json_real(rate));
    json_object_set_new(r, "loss_per_point", json_real(loss / (double)j->n));
    json_array_append_new(records, r);
done:
    free(j->c), free(j->start);
    j->c = j->start = NULL;
    return status;
}

static void usage(FILE *f) {
    fputs("bench_kmeans: k-means on short vectors\n"
          "  --points N              default 2000000\n"
          "  --dim D                 1 .. 16 (default 8)\n"
          "  --k 256,4096            centroids (default these two)\n"
          "  --iters N               default 20\n"
          "  --reps N                runs; the median counts (default 3)\n"
          "  --weights plain|point|component\n"
          "  --seeding sample|plusplus\n"
          "  --x FILE                fp32 points instead of random ones\n"
          "  --start FILE            fp32 first centroids instead of a sample (one --k)\n"
          "  --out FILE              the centroids, fp32\n"
          "  --threads N             default: one per core\n"
          "  --json FILE, --csv FILE a record per row\n",
          f);
}

static bool parse(int id, const char *value, job *j, int64_t *ks, int *n_ks, int64_t *threads) {
    int64_t v;
    switch (id) {
    case 'n': return bench_parse_ints(value, 1, 1LL << 32, &j->n, 1) == 1;
    case 'd': return bench_parse_ints(value, 1, RQ_KMEANS_MAX_D, &v, 1) == 1 && (j->o.d = (int)v);
    case 'k': return (*n_ks = bench_parse_ints(value, 1, RQ_KMEANS_MAX_K, ks, MAX_KS)) > 0;
    case 'i': return bench_parse_ints(value, 1, 10000, &v, 1) == 1 && (j->o.n_iter = (int)v);
    case 'r': return bench_parse_ints(value, 1, MAX_REPS, &v, 1) == 1 && (j->reps = (int)v);
    case 'j': return bench_parse_ints(value, 1, 1024, threads, 1) == 1;
    case 'w':
        j->o.weights = strcmp(value, "point") == 0       ? RQ_KMEANS_PER_POINT
                       : strcmp(value, "component") == 0 ? RQ_KMEANS_PER_COMPONENT
                                                         : RQ_KMEANS_PLAIN;
        return j->o.weights != RQ_KMEANS_PLAIN || strcmp(value, "plain") == 0;
    case 'g':
        j->o.seeding = strcmp(value, "plusplus") == 0 ? RQ_KMEANS_PLUSPLUS : RQ_KMEANS_SAMPLE;
        return j->o.seeding == RQ_KMEANS_PLUSPLUS || strcmp(value, "sample") == 0;
    case 'x': return (j->x_path = value) != NULL;
    case 's': return (j->start_path = value) != NULL;
    case 'u': return (j->out_path = value) != NULL;
    default: return false;
    }
}

int main(int argc, char **argv) {
    static const struct option options[] = {
        {"points", 1, NULL, 'n'}, {"dim", 1, NULL, 'd'},     {"k", 1, NULL, 'k'},       {"iters", 1, NULL, 'i'},
        {"reps", 1, NULL, 'r'},   {"x", 1, NULL, 'x'},       {"start", 1, NULL, 's'},   {"out", 1, NULL, 'u'},
        {"json", 1, NULL, 'o'},   {"csv", 1, NULL, 'c'},     {"threads", 1, NULL, 'j'}, {"weights", 1, NULL, 'w'},
        {"help", 0, NULL, 'h'},   {"seeding", 1, NULL, 'g'}, {NULL, 0, NULL, 0}};
    job j = {.o = rq_kmeans_default(256, 8), .n = 2000000, .reps = 3};
    const char *json_path = NULL, *csv_path = NULL;
    int64_t ks[MAX_KS] = {256, 4096}, threads = 0;
    int n_ks = 2, id;
    while ((id = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (id == 'h') return usage(stdout), 0;
        if (id == 'o') {
            json_path = optarg;
        } else if (id == 'c') {
            csv_path = optarg;
        } else if (!parse(id, optarg, &j, ks, &n_ks, &threads)) {
            return usage(stderr), 2;
        }
    }
    if (optind < argc || (j.start_path && n_ks > 1)) return usage(stderr), 2;
    char flags[512];
    bench_join_flags(flags, sizeof flags, argc, argv);
    rq_status status = RQ_OK;
    bench_machine m;
    json_t *records = json_array();
    rq_set_threads((int)threads);
    bench_machine_look(&m);
    RQ_TRY(bench_measure_read(&m));
    RQ_TRY(make(&j));
    printf("cpu %s, %d cores, %d threads, %s, load %.2f\n", m.cpu, m.n_cores, m.n_threads, rq_kmeans_pick()->name,
           m.load_before);
    printf("%9s %3s %6s %4s %9s %9s %10s %14s\n", "points", "d", "k", "iter", "med s", "min s", "Mpoint/s",
           "loss/point");
    for (int i = 0; i < n_ks; ++i) RQ_TRY(run(records, &m, flags, &j, ks[i]));
    if (json_path) RQ_TRY(bench_write_json(json_path, records));
    if (csv_path) RQ_TRY(bench_write_csv(csv_path, records));
done:
    if (status != RQ_OK) fprintf(stderr, "bench_kmeans: %s\n", rq_last_error());
    json_decref(records);
    free(j.x), free(j.w);
    return status != RQ_OK;
}
