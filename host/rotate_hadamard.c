/* SPDX-License-Identifier: Apache-2.0 */
/* Hadamard matrices of the orders that widths of models need, built and not tabulated (R. Paley, 1933):
 *
 *   I   q = 3 mod 4:  H = I + [0 1; -1 Q], order q + 1
 *   II  q = 1 mod 4:  H = C (x) [1 1; 1 -1] + I (x) [1 -1; -1 -1], C = [0 1; 1 Q], order 2 (q + 1)
 *
 * with Q[i][j] = chi(a_i - a_j) over the elements of GF(q), chi = 0, +1 on squares, -1 on the rest. An element of
 * GF(p^m) is the number whose digits in base p are the coefficients of its polynomial. Powers of two multiply any order
 * by Sylvester's doubling, which rotate.c applies as a fast transform. */
#include "rotate_hadamard.h"
#include "rotate.h"

enum { MAX_DEGREE = 40 }; /* digits of an int64 in base 3 */

typedef struct field {
    int64_t q, p;
    int m;
    int64_t poly[MAX_DEGREE + 1]; /* monic irreducible, degree m, when m > 1 */
} field;

/* q = p^m with p prime? */
static bool prime_power(int64_t q, int64_t *p, int *m) {
    if (q < 2) return false;
    int64_t f = q;
    for (int64_t d = 2; d * d <= q; ++d) {
        if (q % d == 0) {
            f = d;
            break;
        }
    }
    *p = f;
    *m = 0;
    for (; q % f == 0; q /= f) ++*m;
    return q == 1;
}

static void digits_of(int64_t *c, int n_digits, int64_t x, int64_t p) {
    for (int i = 0; i < n_digits; ++i, x /= p) c[i] = x % p;
}

/* Remainder of a (degree <= da) by the monic b (degree db), in place; true when it is zero. */
static bool poly_reduce(int64_t *a, int da, const int64_t *b, int db, int64_t p) {
    for (int i = da; i >= db; --i) {
        int64_t lead = a[i];
        if (lead == 0) continue;
        for (int j = 0; j <= db; ++j) a[i - db + j] = (a[i - db + j] + (p - lead) * b[j]) % p;
    }
    for (int i = 0; i < db; ++i) {
        if (a[i]) return false;
    }
    return true;
}

/* By division by every monic polynomial of at most half its degree: q is small. */
static bool poly_irreducible(const int64_t *poly, int m, int64_t p) {
    int64_t count = 1;
    for (int d = 1; d <= m / 2; ++d) {
        count *= p;
        for (int64_t x = 0; x < count; ++x) {
            int64_t divisor[MAX_DEGREE + 1], rest[MAX_DEGREE + 1];
            digits_of(divisor, d, x, p);
            divisor[d] = 1;
            memcpy(rest, poly, (size_t)(m + 1) * sizeof *rest);
            if (poly_reduce(rest, m, divisor, d, p)) return false;
        }
    }
    return true;
}

/* The first irreducible polynomial in counting order; one exists for every p and m. */
static void field_init(field *f, int64_t q, int64_t p, int m) {
    *f = (field){.q = q, .p = p, .m = m};
    if (m == 1) return;
    f->poly[m] = 1;
    for (int64_t x = 1; x < q; ++x) {
        digits_of(f->poly, m, x, p);
        if (poly_irreducible(f->poly, m, p)) return;
    }
}

static int64_t field_square(const field *f, int64_t x) {
    if (f->m == 1) return (int64_t)((uint64_t)x * (uint64_t)x % (uint64_t)f->q);
    int64_t a[MAX_DEGREE], square[2 * MAX_DEGREE] = {0}, y = 0;
    digits_of(a, f->m, x, f->p);
    for (int i = 0; i < f->m; ++i) {
        for (int j = 0; j < f->m; ++j) square[i + j] = (square[i + j] + a[i] * a[j]) % f->p;
    }
    (void)poly_reduce(square, 2 * f->m - 2, f->poly, f->m, f->p);
    for (int i = f->m - 1; i >= 0; --i) y = y * f->p + square[i];
    return y;
}

static int64_t field_sub(const field *f, int64_t x, int64_t y) {
    if (f->m == 1) return x >= y ? x - y : x - y + f->q;
    int64_t a[MAX_DEGREE], b[MAX_DEGREE], z = 0;
    digits_of(a, f->m, x, f->p);
    digits_of(b, f->m, y, f->p);
    for (int i = f->m - 1; i >= 0; --i) z = z * f->p + (a[i] - b[i] + f->p) % f->p;
    return z;
}

/* Which construction gives order k: 1, 2, or 0 for none; *q, *p, *m describe its field. */
static int paley_kind(int64_t k, int64_t *q, int64_t *p, int *m) {
    if (k < 4 || k % 4) return 0;
    *q = k - 1; /* 3 mod 4 */
    if (prime_power(*q, p, m)) return 1;
    *q = k / 2 - 1;
    if (*q % 4 == 1 && prime_power(*q, p, m)) return 2;
    return 0;
}

int64_t rq_hadamard_core(int64_t n) {
    if (n < 1 || n > INT32_MAX) return 0;
    int64_t k = n, q, p;
    int m;
    while (k % 2 == 0) k /= 2;
    if (k == 1) return 1;
    for (; k <= n && n % k == 0; k *= 2) {
        if (paley_kind(k, &q, &p, &m)) return k;
    }
    return 0;
}

bool rq_hadamard_order_exists(int64_t n) { return rq_hadamard_core(n) > 0; }

/* [0 1; sign Q], order q + 1, into c. */
static void conference_fill(int8_t *c, const field *f, const int8_t *chi, int sign) {
    int64_t n = f->q + 1;
    c[0] = 0;
    for (int64_t j = 1; j < n; ++j) {
        c[j] = 1;
        c[j * n] = (int8_t)sign;
        for (int64_t i = 1; i < n; ++i) c[i * n + j] = chi[field_sub(f, i - 1, j - 1)];
    }
}

rq_status rq_hadamard_fill(int8_t *h, int64_t k) {
    static const int8_t by_c[2][2] = {{1, 1}, {1, -1}}, by_i[2][2] = {{1, -1}, {-1, -1}};
    rq_status status = RQ_OK;
    int64_t q = 0, p = 0;
    int m = 0, kind = k == 1 ? 0 : paley_kind(k, &q, &p, &m);
    int8_t *chi = NULL, *c = NULL;
    field f;
    if (k == 1) {
        h[0] = 1;
        return RQ_OK;
    }
    if (!kind) return rq_fail(RQ_ERR_ARG, "no construction of a Hadamard matrix of order %lld is known", (long long)k);
    field_init(&f, q, p, m);
    RQ_TRY(RQ_NEW(chi, q));
    memset(chi, -1, (size_t)q);
    for (int64_t x = 1; x < q; ++x) chi[field_square(&f, x)] = 1;
    chi[0] = 0;
    if (kind == 1) {
        conference_fill(h, &f, chi, -1);
        for (int64_t i = 0; i < k; ++i) h[i * k + i] = 1;
        goto done;
    }
    int64_t n = q + 1;
    RQ_TRY(RQ_NEW(c, n * n));
    conference_fill(c, &f, chi, 1);
    for (int64_t i = 0; i < k; ++i) {
        for (int64_t j = 0; j < k; ++j) {
            int v = c[i / 2 * n + j / 2] * by_c[i % 2][j % 2];
            if (i / 2 == j / 2) v += by_i[i % 2][j % 2];
            h[i * k + j] = (int8_t)v;
        }
    }
done:
    free(c);
    free(chi);
    return status;
}
