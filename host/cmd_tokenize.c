/* SPDX-License-Identifier: Apache-2.0 */
/* requite tokenize: text to ids, and ids to text. */
#include "cmd.h"
#include "tokenizer.h"

enum { MAX_TEXT = 1 << 30 };

static const cmd_flag flags[] = {
    {"text", 0, "FILE", "the text; - reads standard input"},
    {"decode", 0, "IDS", "token ids separated by commas or blanks, or a file of them: print their text"},
    {"special", 0, NULL, "add the tokens that the model's template adds (for example BOS)"},
};
static const cmd_spec spec = {
    "tokenize MODEL --text FILE|- | --decode IDS [options]",
    "Token ids of a text, one line, or the text of token ids. MODEL: a folder with tokenizer.json, or a .gguf.",
    flags,
    sizeof flags / sizeof *flags,
    false,
    1,
    1,
};

static rq_status read_stdin(char **text, int64_t *n) {
    size_t capacity = 1 << 16, used = 0;
    char *p = malloc(capacity);
    while (p) {
        used += fread(p + used, 1, capacity - used, stdin);
        if (used < capacity) break;
        if (capacity >= MAX_TEXT) {
            free(p);
            return rq_fail(RQ_ERR_INPUT, "standard input holds more than 1 GiB");
        }
        char *q = realloc(p, capacity *= 2);
        if (!q) free(p);
        p = q;
    }
    *text = p;
    *n = (int64_t)used;
    return p ? RQ_OK : rq_fail(RQ_ERR_NOMEM, "out of memory");
}

static rq_status parse_ids(const char *text, int32_t **ids, int64_t *n) {
    int64_t capacity = (int64_t)strlen(text) / 2 + 1;
    rq_status status = RQ_NEW(*ids, capacity);
    *n = 0;
    for (const char *p = text; status == RQ_OK;) {
        p += strspn(p, ", \t\r\n[]");
        if (!*p) break;
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 0 || v > INT32_MAX) return rq_fail(RQ_ERR_ARG, "--decode: '%.20s' is not a token id", p);
        (*ids)[(*n)++] = (int32_t)v;
        p = end;
    }
    return status;
}

static rq_status decode(const cmd_args *a, const rq_tokenizer *t, const char *given) {
    rq_status status = RQ_OK;
    char *file = NULL, *text = NULL;
    int32_t *ids = NULL;
    int64_t n_ids, n;
    FILE *probe = fopen(given, "r");
    if (probe) {
        (void)fclose(probe); /* only read */
        RQ_TRY(rq_read_file(given, MAX_TEXT, &file, &n));
    }
    RQ_TRY(parse_ids(file ? file : given, &ids, &n_ids));
    RQ_TRY(rq_tokenizer_decode(t, ids, n_ids, false, &text, &n));
    if (cmd_has(a, "json")) {
        json_t *j = json_stringn(text, (size_t)n);
        if (!j) RQ_FAIL(RQ_ERR_INPUT, "the text of these ids is not valid UTF-8, which JSON cannot hold");
        cmd_print_json(json_pack("{s:o}", "text", j));
    } else {
        (void)fwrite(text, 1, (size_t)n, stdout); /* main looks at stdout before it ends */
    }
done:
    free(file);
    free(text);
    free(ids);
    return status;
}

static rq_status encode(const cmd_args *a, const rq_tokenizer *t, const char *path) {
    rq_status status = RQ_OK;
    char *text = NULL;
    int32_t *ids = NULL;
    int64_t n, n_ids;
    RQ_TRY(strcmp(path, "-") == 0 ? read_stdin(&text, &n) : rq_read_file(path, MAX_TEXT, &text, &n));
    RQ_TRY(rq_tokenizer_encode(t, text, n, cmd_has(a, "special"), &ids, &n_ids));
    if (cmd_has(a, "json")) {
        json_t *list = json_array();
        for (int64_t i = 0; i < n_ids; ++i) json_array_append_new(list, json_integer(ids[i]));
        json_t *j = json_pack("{s:o}", "ids", list);
        json_dumpf(j, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(j);
    } else {
        for (int64_t i = 0; i < n_ids; ++i) printf("%s%d", i ? " " : "", ids[i]);
        putchar('\n');
    }
done:
    free(text);
    free(ids);
    return status;
}

int cmd_tokenize(int argc, char **argv) {
    rq_status status = RQ_OK;
    cmd_args a;
    rq_store *s = NULL;
    rq_tokenizer *t = NULL;
    int code = cmd_parse(&a, argc, argv, &spec);
    if (code >= 0) return code;
    const char *text = cmd_value(&a, "text"), *ids = cmd_value(&a, "decode");
    if (!text == !ids) RQ_FAIL(RQ_ERR_ARG, "tokenize needs either --text FILE or --decode IDS");
    RQ_TRY(rq_store_open(&s, a.arg[0]));
    RQ_TRY(rq_tokenizer_open(&t, s));
    RQ_TRY(ids ? decode(&a, t, ids) : encode(&a, t, text));
done:
    code = cmd_fail_input(status);
    rq_tokenizer_close(t);
    rq_store_close(s);
    return code;
}
