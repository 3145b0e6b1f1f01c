// A load generator for chat completions over HTTP/1.1.
//
//     load -p PORT -b BODY_FILE -c CONNECTIONS -t SECONDS [-w WARMUP_SECONDS] [-r RATE] [-s] [-k KEY] [-x SEED]
//
// Without a rate each connection sends its next request when the last is answered: saturation. With one, requests are
// due at times drawn from a Poisson process, whatever the server does, and latency counts from when a request was due,
// not from when a connection was free to carry it; so a stall is paid for by everybody it delays. With -s the answers
// are event streams; each event's delay is told from the stamp that the upstream wrote into it. Prints one JSON object.
#include "rig.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_EVENTS = 512, CHUNKS = 64, MAX_SAMPLES = 4000000 };

typedef struct {
    float *us;
    size_t size;
} Samples;

typedef enum { HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER } Where;

typedef struct {
    int fd, busy, measured, status, close_after, events;
    uint64_t due; // when its request was to be sent
    Bytes head;   // of the answer, until it is whole
    Bytes line;   // of an event stream
    Where where;
    long left; // of the body, or of the chunk
} Connection;

static int poller, port, streaming;
static Bytes request;
static Connection *connections;
static Samples latency, first_event, event_delay;
static long answered, failed, total, events_seen;
static int measuring;

static void sample(Samples *s, uint64_t ns) {
    if (s->size < MAX_SAMPLES) s->us[s->size++] = (float)ns / 1000.0f;
}

static void open_socket(Connection *c) {
    int one = 1;
    struct sockaddr_in address = {AF_INET, htons((uint16_t)port), {htonl(INADDR_LOOPBACK)}, {0}};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void close_socket(Connection *c) {
    close(c->fd);
    c->fd = -1;
}

static void send_request(Connection *c, uint64_t due) {
    c->busy = 1;
    c->measured = measuring;
    c->due = due;
    c->head.size = c->line.size = 0;
    c->where = HEAD;
    c->events = c->status = 0;
    for (size_t sent = 0; sent < request.size;) {
        if (c->fd < 0) open_socket(c);
        ssize_t n = send(c->fd, request.data + sent, request.size - sent, MSG_NOSIGNAL);
        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno != EAGAIN) { // closed while idle
            close_socket(c);
            sent = 0;
        }
    }
}

// One line of the event stream.
static void read_line(Connection *c) {
    c->line.data[c->line.size] = 0;
    char *stamp = strstr(c->line.data, "\"T");
    if (!stamp || stamp[2] < '0' || stamp[2] > '9') return;
    uint64_t now = now_ns();
    c->events++;
    if (!measuring) return;
    events_seen++; // of streams that began before the measurement too: a slow server may have no others
    sample(&event_delay, now - strtoull(stamp + 2, NULL, 10));
    if (c->measured && c->events == 1) sample(&first_event, now - c->due);
}

static void read_body(Connection *c, const char *data, size_t size) {
    if (!streaming) return;
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t n = end ? (size_t)(end - data) : size;
        bytes_append(&c->line, data, n);
        if (end) {
            read_line(c);
            c->line.size = 0;
            n++;
        }
        data += n;
        size -= n;
    }
}

// Takes bytes of the answer's body; returns whether it is whole.
static int take_body(Connection *c, const char *data, size_t size) {
    while (size) {
        if (c->where == LENGTH || c->where == CHUNK_DATA) {
            size_t n = (long)size < c->left ? size : (size_t)c->left;
            read_body(c, data, n);
            c->left -= (long)n;
            data += n;
            size -= n;
            if (c->left == 0) {
                if (c->where == LENGTH) return 1;
                c->where = CHUNK_END;
            }
            continue;
        }
        char byte = *data++;
        size--;
        if (c->where == CHUNK_SIZE) {
            if (byte == '\n') c->where = c->left ? CHUNK_DATA : TRAILER;
            else if (byte != '\r') c->left = c->left * 16 + (byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
        } else if (byte == '\n') {
            if (c->where == TRAILER) return 1;
            c->where = CHUNK_SIZE;
            c->left = 0;
        }
    }
    return c->where == LENGTH && c->left == 0;
}

static void finish(Connection *c, int whole) {
    uint64_t now = now_ns();
    int good = whole && c->status == 200 && (!streaming || c->events == CHUNKS);
    c->busy = 0;
    total++;
    if (measuring && c->measured) {
        if (good) sample(&latency, now - c->due), answered++;
        else failed++;
    }
    if (c->close_after && c->fd >= 0) close_socket(c);
}

// Returns whether the connection's answer has ended, well or badly.
static int take(Connection *c) {
    char data[65536];
    ssize_t got = recv(c->fd, data, sizeof data, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) {
        close_socket(c);
        if (!c->busy) return 0;
        finish(c, 0);
        return 1;
    }
    if (!c->busy) return 0;
    const char *body = data;
    size_t size = (size_t)got;
    if (c->where == HEAD) {
        bytes_append(&c->head, data, size);
        char *end = memmem(c->head.data, c->head.size, "\r\n\r\n", 4);
        if (!end) return 0;
        end[2] = 0;
        c->status = atoi(c->head.data + 9);
        c->close_after = strcasestr(c->head.data, "\r\nconnection: close") != NULL;
        char *length = strcasestr(c->head.data, "\r\ncontent-length:");
        c->where = length ? LENGTH : CHUNK_SIZE;
        c->left = length ? atol(length + 17) : 0;
        body = end + 4;
        size = c->head.size - (size_t)(end + 4 - c->head.data);
        if (c->where == LENGTH && c->left == 0) {
            finish(c, 1);
            return 1;
        }
    }
    if (!take_body(c, body, size)) return 0;
    finish(c, 1);
    return 1;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_quantiles(const char *name, Samples *s) {
    qsort(s->us, s->size, sizeof *s->us, ascending);
    printf(", \"%s\": {\"count\": %zu", name, s->size);
    static const struct { const char *name; double q; } QUANTILES[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};
    for (int i = 0; i < 3 && s->size; i++)
        printf(", \"%s\": %.1f", QUANTILES[i].name, s->us[(size_t)(QUANTILES[i].q * (double)(s->size - 1))]);
    printf("}");
}

static void read_request(const char *path, const char *key) {
    FILE *file = fopen(path, "r");
    if (!file) die(path);
    char body[1 << 20], head[512];
    size_t size = fread(body, 1, sizeof body, file);
    fclose(file);
    int n = snprintf(head, sizeof head,
                     "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: load\r\nAccept: */*\r\n"
                     "Authorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                     port, key, size);
    bytes_append(&request, head, (size_t)n);
    bytes_append(&request, body, size);
}

int main(int argc, char **argv) {
    int num_connections = 32, option;
    double seconds = 3, warmup = 0.5, rate = 0;
    const char *body = NULL, *key = "none";
    srand48(1);
    while ((option = getopt(argc, argv, "p:b:c:t:w:r:sk:x:")) > 0) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'b': body = optarg; break;
        case 'c': num_connections = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 's': streaming = 1; break;
        case 'k': key = optarg; break;
        case 'x': srand48(atol(optarg)); break;
        default: return 2;
        }
    if (!port || !body) {
        fprintf(stderr, "usage: %s -p PORT -b BODY_FILE ...\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    read_request(body, key);
    latency.us = malloc(sizeof(float) * MAX_SAMPLES);
    first_event.us = malloc(sizeof(float) * MAX_SAMPLES);
    event_delay.us = malloc(sizeof(float) * MAX_SAMPLES);
    poller = epoll_create1(0);
    connections = calloc((size_t)num_connections, sizeof *connections);
    Connection **idle = calloc((size_t)num_connections, sizeof *idle);
    int num_idle = 0;
    for (int i = 0; i < num_connections; i++) {
        bytes_reserve(&connections[i].line, 4096);
        open_socket(&connections[i]);
        idle[num_idle++] = &connections[i];
    }
    uint64_t begin = now_ns(), measure_from = begin + (uint64_t)(warmup * 1e9);
    uint64_t end = measure_from + (uint64_t)(seconds * 1e9), next = begin;
    struct epoll_event ready[MAX_EVENTS];
    for (;;) {
        uint64_t now = now_ns();
        if (!measuring && now >= measure_from) measuring = 1;
        if (now >= end) break;
        while (num_idle && (rate <= 0 || next <= now)) {
            send_request(idle[--num_idle], rate > 0 ? next : now_ns());
            if (rate > 0) next += (uint64_t)(-log(1 - drand48()) * 1e9 / rate);
        }
        uint64_t until = !measuring && measure_from < end ? measure_from : end;
        if (rate > 0 && num_idle && next < until) until = next;
        now = now_ns();
        uint64_t left = until > now ? until - now : 0;
        struct timespec wait = {(time_t)(left / 1000000000ull), (long)(left % 1000000000ull)};
        int n = epoll_pwait2(poller, ready, MAX_EVENTS, &wait, NULL);
        for (int i = 0; i < n; i++) {
            Connection *c = ready[i].data.ptr;
            if (c->fd < 0 || !take(c)) continue;
            if (rate > 0) idle[num_idle++] = c;
            else send_request(c, now_ns());
        }
    }
    double measured = (double)(now_ns() - measure_from) / 1e9;
    printf("{\"seconds\": %.3f, \"answered\": %ld, \"failed\": %ld, \"total\": %ld, \"events\": %ld", measured, answered,
           failed, total, events_seen);
    print_quantiles("latency_us", &latency);
    if (streaming) {
        print_quantiles("first_event_us", &first_event);
        print_quantiles("event_delay_us", &event_delay);
    }
    printf("}\n");
    return 0;
}
