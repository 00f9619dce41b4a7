/* SPDX-License-Identifier: Apache-2.0 */
/* The cost model of `requite quantize --dry-run --devices`. Each device has a rank. For every block and stage, as quantize_blocks.c goes:
 *
 *   forward   what the pass of the stage applies, tokens shared by the ranks (rq_stage_flops)
 *   gram      H, and D, of the stage's input: tiles shared by the ranks; to each of them all inputs of the others (net)
 *   factor    U, and terms T and M: by every rank, once for each set of options that differ in them
 *   sweep     scales, sweep, moved targets; refine: what comes after. A set is one rank's; of a grid on CPUs ranks share a matrix's rows
 *   host      the CPU's part of the two before
 *   disk      activations that one pass writes and the next reads, shared by the ranks; the weights, read by every rank
 *
 * seconds = operations / rate, and for sweep and refinement seconds for each launch. Nothing overlaps, so the sum is a plain one. */
#include "quantize_cost.h"

#include <jansson.h>
#include <math.h>
#include <strings.h>

#include "calib_blocks.h"
#include "device_plan.h"

const char *const rq_cost_names[RQ_COST_STAGES] = {"forward", "gram", "factor",        "terms", "sweep",
                                                   "refine",  "host", "between ranks", "disk"};

/* Peak rates of data sheets, dense: fp32, fp64 (with tensor cores where it has those) and bfloat16 in operations a second, memory in GiB, the bus in bytes a
 * second. */
typedef struct nominal {
    const char *name;
    double memory, fp32, fp64, bf16, bus;
} nominal;
static const nominal sheet[] = {
    {"A100", 80, 19.5e12, 19.5e12, 312e12, 32e9},    {"H100", 80, 67e12, 67e12, 989e12, 64e9},
    {"H200", 141, 67e12, 67e12, 989e12, 64e9},       {"L40S", 48, 91.6e12, 1.43e12, 362e12, 32e9},
    {"RTX4090", 24, 82.6e12, 1.29e12, 165e12, 32e9}, {"CPU", 0, 2e12, 1e12, 0, 0},
};

static const nominal *find(const char *name) {
    for (size_t i = 0; i < sizeof sheet / sizeof *sheet; ++i) {
        if (strcasecmp(sheet[i].name, name) == 0) return &sheet[i];
    }
    return NULL;
}

rq_status rq_device_list_parse(rq_device_list *d, const char *text) {
    char *end;
    const long n = strtol(text, &end, 10);
    *d = (rq_device_list){0};
    if (end == text || *end != 'x' || n < 1 || n > 1 << 16) goto bad;
    const char *name = end + 1, *dash = strchr(name, '-');
    const size_t length = dash ? (size_t)(dash - name) : strlen(name);
    if (length < 1 || length >= sizeof d->name) goto bad;
    d->n = (int)n;
    memcpy(d->name, name, length);
    const nominal *row = find(d->name);
    if (row) d->memory = row->memory * 1073741824;
    if (!dash) return RQ_OK;
    d->memory = strtod(dash + 1, &end) * 1073741824;
    if (end == dash + 1 || *end != 'G' || end[1] || !(d->memory > 0)) goto bad;
    return RQ_OK;
bad:
    return rq_fail(RQ_ERR_ARG, "--devices %s: a number, a name and their memory are wanted, as 8xH100-80G", text);
}

/* What is not a property of a device. */
static const rq_rates usual = {.host = 2e8, .disk = 1e9, .net = 5e9};

/* Shares of the peaks that products, the factor and our kernels are taken to reach. */
static void nominal_rates(rq_rates *r, const nominal *row) {
    *r = usual;
    r->forward = r->gram = r->terms = 0.6 * row->fp32;
    r->forward_bf16 = 0.6 * row->bf16;
    r->gram_bf16 = 0.5 * row->bf16;
    r->factor = 0.3 * row->fp64;
    r->sweep = 0.1 * row->fp32;
    r->refine = 0.4 * row->fp32;
    r->bus = 0.8 * row->bus;
    r->launch = row->bus > 0 ? 20e-6 : 0;
}

static rq_status load_rates(rq_rates *r, const char *path) {
    rq_status status = RQ_OK;
    json_error_t where;
    json_t *j = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    const struct {
        const char *key;
        double *to;
    } field[] = {
        {"forward", &r->forward},    {"gram", &r->gram},     {"factor", &r->factor}, {"terms", &r->terms},
        {"sweep", &r->sweep},        {"refine", &r->refine}, {"host", &r->host},     {"bus", &r->bus},
        {"disk", &r->disk},          {"net", &r->net},       {"launch", &r->launch}, {"bf16", &r->forward_bf16},
        {"gram_bf16", &r->gram_bf16}};
    if (!j) RQ_FAIL(RQ_ERR_INPUT, "--rates %s: line %d: %s", path, where.line, where.text);
    if (!json_is_object(j) || !json_is_integer(json_object_get(j, "schema_version")) || !json_object_get(j, "gram"))
        RQ_FAIL(RQ_ERR_INPUT, "--rates %s: it is not what bench_quantize --rates writes", path);
    /* The products of the forward pass are those of cuBLAS in fp32, unless the file knows better. */
    if (json_is_number(json_object_get(j, "fp32"))) r->forward = json_number_value(json_object_get(j, "fp32"));
    for (size_t i = 0; i < sizeof field / sizeof *field; ++i) {
        const json_t *v = json_object_get(j, field[i].key);
        if (!v) continue;
        if (!json_is_number(v) || !(json_number_value(v) >= 0))
            RQ_FAIL(RQ_ERR_INPUT, "--rates %s: %s is not a number from 0 up", path, field[i].key);
        *field[i].to = json_number_value(v);
    }
    r->measured = json_is_true(json_object_get(j, "measured"));
done:
    json_decref(j);
    return status;
}

rq_status rq_rates_of(rq_rates *r, const rq_device_list *d, const char *path) {
    const nominal *row = find(d->name);
    if (path) {
        *r = usual;
        return load_rates(r, path);
    }
    if (row) {
        nominal_rates(r, row);
        return RQ_OK;
    }
    char names[160] = "";
    for (size_t i = 0; i < sizeof sheet / sizeof *sheet; ++i) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", sheet[i].name);
    }
    return rq_fail(RQ_ERR_ARG,
                   "there are no nominal rates of %s (of %s there are): give --rates FILE of bench_quantize", d->name,
                   names);
}

static double seconds(double work, double rate) { return work > 0 ? work / rate : 0; }

/* Work that n devices share. */
static void shared(rq_cost *c, rq_cost_stage at, double work, double rate, int n) {
    c->work[at] += work;
    c->seconds[at] += seconds(work / n, rate);
}

static double operations(const rq_work *w) { return w->flops + w->own_flops; }

static double forward_rate(const rq_quantizer *z, const rq_rates *r) {
    return z->job->bf16 ? r->forward_bf16 : r->forward;
}

/* What the sets of a stage take from factor to refinement. */
typedef struct stage_cost {
    double sweep[RQ_N_LINEARS], refine[RQ_N_LINEARS]; /* seconds of each set */
    int n_sets;
} stage_cost;

/* Rounds of one set a rank: a round takes as long as its longest set. */
static void deal_sets(rq_cost *c, const stage_cost *s, int n) {
    for (int first = 0; first < s->n_sets; first += n) {
        int longest = first;
        for (int i = first; i < first + n && i < s->n_sets; ++i) {
            if (s->sweep[i] + s->refine[i] > s->sweep[longest] + s->refine[longest]) longest = i;
        }
        c->seconds[RQ_COST_SWEEP] += s->sweep[longest];
        c->seconds[RQ_COST_REFINE] += s->refine[longest];
    }
}

/* A set is a stack of rows, whatever matrices they are of. */
static rq_status cost_of_sets(rq_cost *c, const rq_quantizer *z, const rq_rates *r, int64_t layer, int st, int n,
                              bool cpu) {
    rq_status status = RQ_OK;
    const rq_matrix_plan *p = &z->plan[layer * RQ_N_LINEARS];
    const rq_quant_opt *prepared = NULL;
    const double tokens = (double)(z->job->samples.n_samples * z->job->samples.seq_len);
    stage_cost s = {.n_sets = 0};
    bool gram = false;
    for (int lead = rq_stage_first[st]; lead < rq_stage_first[st + 1]; ++lead) {
        rq_device_work w;
        int64_t n_out = 0, n_in = p[lead].n_in;
        if (!p[lead].quantized || p[lead].lead != lead) continue;
        for (int m = lead; m < rq_stage_first[st + 1]; ++m)
            n_out += p[m].quantized && p[m].lead == lead ? p[m].n_out : 0;
        RQ_TRY(rq_device_plan(&w, n_out, n_in, (int64_t)tokens, &p[lead].opt));
        c->device_bytes = w.memory > c->device_bytes ? w.memory : c->device_bytes;
        if (!gram && w.gram.launches) {
            if (z->job->bf16) {
                rq_work half;
                rq_device_plan_gram_bf16(&half, n_in, (int64_t)tokens, rq_quant_wants_cross(&p[lead].opt));
                shared(c, RQ_COST_GRAM, operations(&half), r->gram_bf16, n);
            } else {
                shared(c, RQ_COST_GRAM, operations(&w.gram), r->gram, n);
            }
            c->bus_bytes += w.gram.download; /* the forward pass left the inputs on the device */
            /* A rank gets the inputs of all others. */
            if (n > 1) shared(c, RQ_COST_NET, w.gram.upload * (n - 1), r->net, n);
            gram = true;
        }
        c->bus_bytes += w.forward.upload * n; /* by every rank */
        if (!prepared || !rq_quant_same(prepared, &p[lead].opt)) {
            const int ranks = n; /* each prepares for itself */
            c->work[RQ_COST_FACTOR] += operations(&w.factor) * ranks;
            c->work[RQ_COST_TERMS] += operations(&w.terms) * ranks;
            c->seconds[RQ_COST_FACTOR] += seconds(operations(&w.factor), r->factor);
            c->seconds[RQ_COST_TERMS] += seconds(operations(&w.terms), r->terms);
            c->bus_bytes += (w.factor.upload + w.factor.download + w.terms.upload + w.terms.download) * ranks;
            shared(c, RQ_COST_HOST, (double)n_in * (double)n_in * ranks, r->host, ranks);
            prepared = &p[lead].opt;
        }
        c->work[RQ_COST_SWEEP] += operations(&w.sweep);
        c->work[RQ_COST_REFINE] += operations(&w.refine);
        const bool rows = cpu && !rq_round_is_book(p[lead].opt.round); /* shared by the ranks */
        const double sweep = seconds(operations(&w.sweep), r->sweep) + (double)w.sweep.launches * r->launch,
                     refine = seconds(operations(&w.refine), r->refine) + (double)w.refine.launches * r->launch;
        if (rows) c->seconds[RQ_COST_SWEEP] += sweep / n;
        if (rows) c->seconds[RQ_COST_REFINE] += refine / n;
        s.sweep[s.n_sets] = rows ? 0 : sweep;
        s.refine[s.n_sets++] = rows ? 0 : refine;
        c->bus_bytes += w.sweep.upload + w.sweep.download + w.refine.upload + w.refine.download;
        shared(c, RQ_COST_HOST, (double)n_out * (double)n_in, r->host, 1);
        if (n > 1) shared(c, RQ_COST_NET, 4.0 * (double)n_out * (double)n_in * (n - 1), r->net, n);
    }
    deal_sets(c, &s, n);
done:
    return status;
}

/* Samples of a chunk, as calib_blocks.c cuts them. */
static int64_t chunk_samples(int64_t seq_len) { return rq_max_i64(1, 2048 / rq_max_i64(1, seq_len)); }

/* Tokens of the rank that has most: chunks go round. */
static double share_of(const rq_samples *s, int n) {
    const int64_t chunk = chunk_samples(s->seq_len), chunks = rq_ceil_div(rq_ceil_div(s->n_samples, chunk), n);
    return (double)(rq_min_i64(s->n_samples, chunks * chunk) * s->seq_len);
}

/* Values a token that the passes of one block bring from files or write there, a rank having `tokens`: x seven times (in a pass each, written after o, and
 * read and written at the end), ao and f twice. What fits into `room` bytes of the device beside the rest stays there, in the order in which backend_cuda_rows.c asks. */
static double spilled(const rq_config *c, double tokens, int streams, double room) {
    const double width[] = {(double)c->d_model, (double)(c->n_head * c->head_dim), (double)c->d_ff};
    const int times[] = {7, 2, 2};
    double values = 0;
    for (int i = 0; i < streams; ++i) {
        for (int k = 0; k < 3; ++k) {
            const double bytes = 4 * tokens * width[k];
            if (bytes > room)
                values += times[k] * width[k];
            else
                room -= bytes;
        }
    }
    return values;
}

/* Device memory, when that of matrices is given: a pass needs other things, and beside both are the buffers of a chunk. */
static double with_chunks(double matrices, const rq_quantizer *z, int streams, int n) {
    const rq_config *c = &z->model->cfg;
    const int64_t seq = rq_max_i64(1, z->job->samples.seq_len);
    const rq_forward_shape shape = {.d = c->d_model,
                                    .ff = c->d_ff,
                                    .qd = c->n_head * c->head_dim,
                                    .kd = c->n_kv_head * c->head_dim,
                                    .n_head = c->n_head,
                                    .chunk = chunk_samples(seq) * seq,
                                    .n_streams = streams,
                                    .cross = streams > 1,
                                    .bf16 = z->job->bf16,
                                    .ranks = n > 1};
    double chunk, pass;
    rq_device_plan_forward(&chunk, &pass, &shape);
    return chunk + (pass > matrices ? pass : matrices);
}

rq_status rq_quantize_cost(rq_cost *c, const rq_quantizer *z, const rq_rates *r, const rq_device_list *on) {
    rq_status status = RQ_OK;
    const int n = on->n;
    const bool cpu = strcasecmp(on->name, "cpu") == 0;
    const rq_config *cfg = &z->model->cfg;
    const double tokens = (double)(z->job->samples.n_samples * z->job->samples.seq_len);
    const bool forward = rq_plan_needs_calibration(z);
    bool cross = false;
    double weights = 0;
    *c = (rq_cost){.n_devices = n, .measured = r->measured};
    for (int64_t i = 0; i < cfg->n_layer * RQ_N_LINEARS; ++i) {
        cross |= z->plan[i].quantized && rq_quant_wants_cross(&z->plan[i].opt);
        weights += (double)z->plan[i].n_out * (double)z->plan[i].n_in;
    }
    const int streams = cross ? 2 : 1;
    for (int64_t layer = 0; layer < cfg->n_layer; ++layer) {
        for (int st = 0; forward && st <= RQ_N_STAGES; ++st) {
            if (st == RQ_N_STAGES && layer + 1 == cfg->n_layer) continue;
            shared(c, RQ_COST_FORWARD, rq_stage_flops(cfg, st, z->job->samples.seq_len) * tokens * streams,
                   forward_rate(z, r), n);
        }
        for (int st = 0; st < RQ_N_STAGES; ++st) RQ_TRY(cost_of_sets(c, z, r, layer, st, n, cpu));
    }
    if (forward) {
        c->device_bytes = with_chunks(c->device_bytes, z, streams, n);
        const double room = cpu ? 0 : on->memory * 15 / 16 - c->device_bytes; /* a sixteenth is left free */
        const double bytes =
            4 * spilled(cfg, share_of(&z->job->samples, n), streams, room) * tokens * (double)cfg->n_layer;
        shared(c, RQ_COST_DISK, bytes, r->disk, n);
        c->bus_bytes += cpu ? 0 : bytes;
    }
    shared(c, RQ_COST_DISK, 2 * weights * n, r->disk, n); /* in 16 bits, by every rank */
    for (int i = 0; i < RQ_COST_STAGES; ++i) {
        if (!isfinite(c->seconds[i]))
            RQ_FAIL(RQ_ERR_INPUT, "--rates %s says nothing of %s", z->job->rates ? z->job->rates : "",
                    rq_cost_names[i]);
        c->total += c->seconds[i];
        if (c->seconds[i] > c->seconds[c->most]) c->most = (rq_cost_stage)i;
    }
done:
    return status;
}
