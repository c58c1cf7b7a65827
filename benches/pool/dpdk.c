/* DPDK's mempool for the pool bench: the loops are here because its calls are inline functions.
 * benches/pool/dpdk.rs loads what benches/pool/dpdk.sh makes of this file. */

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_lcore.h>
#include <rte_mempool.h>

enum { BULK = 32, CACHE = 256 };

static struct rte_mempool *pool;

/* A pool of `count` buffers of `size` bytes each; 0, or the number of an error. */
int pinbuf_dpdk_init(unsigned count, unsigned size)
{
    /* Without huge pages and devices, and without binding the thread to one processor. */
    char *args[] = { "bench", "--no-huge", "--no-pci", "--no-telemetry", "--no-shconf",
                     "--log-level=3", "-m", "256", "--lcores=0@(0-1)" };
    if (rte_eal_init(sizeof args / sizeof *args, args) < 0)
        return rte_errno ? rte_errno : -1;
    pool = rte_mempool_create("bench", count, size, CACHE, 0, NULL, NULL, NULL, NULL,
                              SOCKET_ID_ANY, 0);
    return pool ? 0 : rte_errno;
}

/* A thread that EAL did not start has a cache only once it is registered. */
static inline void join(void)
{
    if (rte_lcore_id() == LCORE_ID_ANY)
        rte_thread_register();
}

static inline void *take(void)
{
    void *buf;
    if (rte_mempool_get(pool, &buf))
        rte_panic("the pool is larger than what is out\n");
    __asm__ volatile("" : "+r"(buf) : : "memory");
    return buf;
}

void pinbuf_dpdk_pairs(unsigned long count)
{
    join();
    for (unsigned long i = 0; i < count; i++)
        rte_mempool_put(pool, take());
}

/* One by one. */
void pinbuf_dpdk_alloc(void **bufs, unsigned long count)
{
    join();
    for (unsigned long i = 0; i < count; i++)
        bufs[i] = take();
}

void pinbuf_dpdk_recycle(void **bufs, unsigned long count)
{
    join();
    for (unsigned long i = 0; i < count; i++)
        rte_mempool_put(pool, bufs[i]);
}

void pinbuf_dpdk_bulks(unsigned long count)
{
    void *bufs[BULK];
    join();
    for (unsigned long i = 0; i < count; i += BULK) {
        if (rte_mempool_get_bulk(pool, bufs, BULK))
            rte_panic("the pool is larger than what is out\n");
        __asm__ volatile("" : : "r"(bufs) : "memory");
        rte_mempool_put_bulk(pool, bufs, BULK);
    }
}
