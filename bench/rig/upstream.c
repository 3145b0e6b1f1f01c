// A mock of an OpenAI-compatible server, fast enough never to be what is measured.
//
//     upstream PORT
//
// Answers a POST at once with about 600 bytes of chat completion, or, where its body says "stream":true, with CHUNKS
// events. The body's text may say INTERVAL=<ms>, the time from one event to the next; without it all go out at once.
// Each event carries the nanosecond at which it was written ("T" and 19 digits), from which the load generator tells
// what lay between. One thread, epoll, HTTP/1.1 with Content-Length or chunked requests.
#include "rig.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNKS = 64, MAX_EVENTS = 512 };

typedef struct Connection {
    int fd;
    Bytes in, out;          // unparsed input; output that the socket did not take
    int next_chunk;         // 0..CHUNKS while a stream is under way, -1 otherwise
    uint64_t interval, due; // ns
    struct Connection *before, *after; // in the queue of streams that wait, ordered by `due`
} Connection;

static int poller;
static Connection queue = {.before = &queue, .after = &queue};

static const char WHOLE[] =
    "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"mock\","
    "\"system_fingerprint\":\"fp_mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
    "\"The river runs slowly past the mill and under the old stone bridge. On its banks stand willows, and in their "
    "shade the fishermen sit from morning until evening and tell each other of the fish they nearly caught.\","
    "\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":40,"
    "\"completion_tokens\":42,\"total_tokens\":82,\"prompt_tokens_details\":{\"cached_tokens\":0}}}";

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                                  "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

#define EVENT_HEAD "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\"," \
                   "\"created\":1760000000,\"model\":\"mock\",\"system_fingerprint\":\"fp_mock\",\"choices\":[{\"index\":0,"

static void dequeue(Connection *c) {
    if (!c->before) return;
    c->before->after = c->after;
    c->after->before = c->before;
    c->before = c->after = NULL;
}

// Streams of one run share an interval, so the new one nearly always belongs at the end.
static void enqueue(Connection *c) {
    Connection *at = queue.before;
    while (at != &queue && at->due > c->due) at = at->before;
    c->before = at;
    c->after = at->after;
    at->after->before = c;
    at->after = c;
}

static void close_connection(Connection *c) {
    dequeue(c);
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

static void watch(Connection *c, uint32_t events, int operation) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &e) < 0) die("epoll_ctl");
}

// Returns 0, or -1 when the peer is gone.
static int put(Connection *c, const char *data, size_t size) {
    if (c->out.size == 0) {
        ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return -1;
        if (sent < 0) sent = 0;
        if ((size_t)sent == size) return 0;
        data += sent;
        size -= (size_t)sent;
        watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    }
    bytes_append(&c->out, data, size);
    return 0;
}

static int flush(Connection *c) {
    ssize_t sent = send(c->fd, c->out.data, c->out.size, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN ? 0 : -1;
    bytes_drop_front(&c->out, (size_t)sent);
    if (c->out.size == 0) watch(c, EPOLLIN, EPOLL_CTL_MOD);
    return 0;
}

static int put_chunk(Connection *c) {
    char event[1024], chunk[1100];
    int size;
    if (c->next_chunk < CHUNKS)
        size = snprintf(event, sizeof event,
                        EVENT_HEAD "\"delta\":{\"content\":\"T%019llu \"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                        (unsigned long long)now_ns());
    else
        size = snprintf(event, sizeof event,
                        EVENT_HEAD "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{"
                                   "\"prompt_tokens\":40,\"completion_tokens\":64,\"total_tokens\":104}}\n\ndata: [DONE]\n\n");
    int last = c->next_chunk == CHUNKS;
    size = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n%s", size, event, last ? "0\r\n\r\n" : "");
    c->next_chunk = last ? -1 : c->next_chunk + 1;
    return put(c, chunk, (size_t)size);
}

// Writes what is due; queues the stream for its next event.
static int run_stream(Connection *c) {
    do {
        if (put_chunk(c) < 0) return -1;
        if (c->next_chunk < 0) return 0;
    } while (c->interval == 0);
    c->due += c->interval;
    enqueue(c);
    return 0;
}

// The length of a chunked body at `data`, or -1 while it is not whole.
static long chunked_length(const char *data, size_t size) {
    size_t at = 0;
    for (;;) {
        const char *end = memmem(data + at, size - at, "\r\n", 2);
        if (!end) return -1;
        unsigned long chunk = strtoul(data + at, NULL, 16);
        at = (size_t)(end - data) + 2 + chunk + 2;
        if (at > size) return -1;
        if (chunk == 0) return (long)at;
    }
}

static int answer(Connection *c, const char *method, const char *body, size_t size) {
    char head[256];
    if (*method != 'P') {
        static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\"}]}";
        int n = snprintf(head, sizeof head,
                         "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                         sizeof MODELS - 1, MODELS);
        return put(c, head, (size_t)n);
    }
    if (memmem(body, size, "\"stream\":true", 13) || memmem(body, size, "\"stream\": true", 14)) {
        const char *interval = memmem(body, size, "INTERVAL=", 9);
        c->interval = interval ? strtoull(interval + 9, NULL, 10) * 1000000ull : 0;
        c->due = now_ns();
        c->next_chunk = 0;
        if (put(c, STREAM_HEAD, sizeof STREAM_HEAD - 1) < 0) return -1;
        return run_stream(c);
    }
    int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
                     sizeof WHOLE - 1);
    char both[sizeof head + sizeof WHOLE];
    memcpy(both, head, (size_t)n);
    memcpy(both + n, WHOLE, sizeof WHOLE - 1);
    return put(c, both, (size_t)n + sizeof WHOLE - 1);
}

// Answers every whole request that has come, one at a time.
static int serve(Connection *c) {
    while (c->in.size && c->next_chunk < 0) {
        char *end = memmem(c->in.data, c->in.size, "\r\n\r\n", 4);
        if (!end) return 0;
        end[2] = 0; // the head is a string now
        size_t head = (size_t)(end - c->in.data) + 4;
        char *length = strcasestr(c->in.data, "\r\ncontent-length:");
        int chunked = strcasestr(c->in.data, "\r\ntransfer-encoding: chunked") != NULL;
        end[2] = '\r';
        long body = length ? atol(length + 17) : 0;
        if (chunked && (body = chunked_length(c->in.data + head, c->in.size - head)) < 0) return 0;
        if (c->in.size < head + (size_t)body) return 0;
        if (answer(c, c->in.data, c->in.data + head, (size_t)body) < 0) return -1;
        bytes_drop_front(&c->in, head + (size_t)body);
    }
    return 0;
}

static int take(Connection *c) {
    bytes_reserve(&c->in, 16384);
    ssize_t got = recv(c->fd, c->in.data + c->in.size, c->in.capacity - c->in.size - 1, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) return -1;
    if (got > 0) c->in.size += (size_t)got;
    return serve(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *c = calloc(1, sizeof *c);
        if (!c) die("out of memory");
        c->fd = fd;
        c->next_chunk = -1;
        watch(c, EPOLLIN, EPOLL_CTL_ADD);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s PORT\n", argv[0]);
        return 2;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {AF_INET, htons((uint16_t)atoi(argv[1])), {htonl(INADDR_LOOPBACK)}, {0}};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(listener, 4096) < 0) die("listen");
    poller = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL}, ready[MAX_EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        struct timespec wait, *timeout = NULL;
        if (queue.after != &queue) {
            uint64_t now = now_ns(), left = queue.after->due > now ? queue.after->due - now : 0;
            wait = (struct timespec){(time_t)(left / 1000000000ull), (long)(left % 1000000000ull)};
            timeout = &wait;
        }
        int n = epoll_pwait2(poller, ready, MAX_EVENTS, timeout, NULL);
        for (int i = 0; i < n; i++) {
            Connection *c = ready[i].data.ptr;
            if (!c) {
                accept_all(listener);
                continue;
            }
            int gone = (ready[i].events & (EPOLLERR | EPOLLHUP)) != 0;
            if (!gone && ready[i].events & EPOLLOUT) gone = flush(c) < 0;
            if (!gone && ready[i].events & EPOLLIN) gone = take(c) < 0;
            if (gone) close_connection(c);
        }
        for (uint64_t now = now_ns(); queue.after != &queue && queue.after->due <= now;) {
            Connection *c = queue.after;
            dequeue(c);
            if (run_stream(c) < 0 || (c->next_chunk < 0 && serve(c) < 0)) close_connection(c);
        }
    }
}
