/* The fault / invalidate protocol of waylend/lending/p2m.py, for spin(1).
 *
 * Two vCPUs of one borrower touch two pages of one lease, each through its own TLB. Two owners of the backing take ranges of
 * it away, at the same time or not, and put another page in the place of the old one (a newer generation) at any moment
 * between the beginning and the end of their invalidation, or not at all (then it is the lender's revocation). The backing
 * may stop to deliver a page for good.
 *
 * A fault is resolved in either of the two ways that p2m.py knows: WHOLE (P2M.fault: it waits while another fault resolves the page or
 * an invalidation of it is in progress) or SPLIT (begin and settle: it fetches at once, and is parked when it comes back during
 * an invalidation). Its condition is modelled as what it is, a set of sleepers that notify_all
 * empties, so that a wake-up can be lost.
 *
 * What must hold:
 *   - no access reaches a page that is older than the last acknowledged invalidation of it (assert in access);
 *   - faults that are resolved whole resolve a page once (assert where it is installed);
 *   - every access ends, with a page, a page of zeros or a fault (no deadlock, no cycle without end);
 *   - every invalidation ends, whatever the borrower does (the same; no step of it waits for a vCPU).
 *
 * Each of these, defined on the command line, breaks it, and must be found out:
 *   NO_RECHECK    a fault installs without looking at the counter again
 *   BUMP_FIRST    the counter is bumped before the unmapping
 *   NOT_WIDENED   an invalidation that begins during another one isn't noted as in progress
 *   NO_FLUSH      an invalidation is acknowledged before the TLBs have forgotten
 *   NO_NOTIFY     the end of an invalidation wakes nobody
 *   RESET_RESOLVING  the end of an invalidation lets a second fault resolve what another one is resolving
 *   SLEEP_LATE    a fault is parked without looking whether the invalidation is still in progress
 */

#define PAGES 2
#define VCPUS 2
#ifndef FIRST_WHOLE
#define FIRST_WHOLE true      /* how the faults of each vCPU are resolved */
#define SECOND_WHOLE false
#endif
#ifndef FIRST_TOUCHES
#define FIRST_TOUCHES 2       /* how often each touches a page */
#define SECOND_TOUCHES 1
#endif
#define NONE 0
#define ZEROS 255
#define LOST 254              /* what the backing delivers when it can't, at any time */

byte current[PAGES] = 1;      /* the generation that the backing delivers */
byte oldest[PAGES] = 1;       /* what the borrower may still see */
byte p2m[PAGES];              /* the generation that is mapped, NONE, or ZEROS */
bool resolving[PAGES];
byte in_progress[PAGES];      /* invalidations under way that cover the page */
byte sequence;

typedef Tlb { byte page[PAGES] };
Tlb tlb[VCPUS];

/* Sleepers on the P2M's condition. What happens under the lock is one atomic step: nothing else that anybody can see is
 * between, but accesses, and of what those see each such step changes one page's mapping at most. */
bool asleep[VCPUS];
inline notify_all() { asleep[0] = false; asleep[1] = false }

/* Through the TLB if it knows the page, else through the p2m. */
inline access(hit) {
    if
    :: tlb[me].page[page] == NONE -> tlb[me].page[page] = p2m[page]
    :: else
    fi;
    hit = tlb[me].page[page] != NONE;
    assert(!hit || tlb[me].page[page] == ZEROS || tlb[me].page[page] >= oldest[page])
}

active [VCPUS] proctype Vcpu() {
    byte touches_left, page, seen, content;
    byte me = _pid;
    bool hit, whole;

    whole = (me == 0 -> FIRST_WHOLE : SECOND_WHOLE);
    touches_left = (me == 0 -> FIRST_TOUCHES : SECOND_TOUCHES);
touch:
    atomic {
        page = 0; hit = false;
        if
        :: goto gone                              /* it may stop at any time: nobody waits for it */
        :: touches_left -> touches_left--
        fi;
        if :: true :: page = 1 fi
    }
again:
    atomic { access(hit) }
    if :: hit -> goto touch :: else fi;
fault:
    atomic {
        if
        :: whole && (resolving[page] || in_progress[page]) -> asleep[me] = true; goto wait_to_begin
        :: whole && !resolving[page] && !in_progress[page] && p2m[page] != NONE -> goto again    /* resolved by another */
        :: else ->
            resolving[page] = resolving[page] || whole;
            seen = sequence
        fi
    }
    if                                            /* without the lock, and as slow as it likes */
    :: content = current[page]
    :: content = LOST
    fi;
    atomic {
        if :: whole -> resolving[page] = false; notify_all() :: else fi;
        if
#ifndef NO_RECHECK
        :: whole && (sequence != seen || in_progress[page]) -> content = 0; seen = 0; goto fault
        :: !whole && in_progress[page] -> content = 0; seen = 0; goto park
        :: !whole && !in_progress[page] && sequence != seen -> content = 0; seen = 0; goto fault
        :: !in_progress[page] && sequence == seen ->
#else
        :: true ->
#endif
            if
            :: content != LOST ->
                assert(!FIRST_WHOLE || !SECOND_WHOLE || p2m[page] == NONE);
                p2m[page] = content; content = 0; seen = 0; goto again
            :: content == LOST -> p2m[page] = ZEROS; content = 0; seen = 0; goto again
            :: content == LOST -> content = 0; seen = 0; goto touch         /* a fault is what it gets */
            fi
        fi
    }
wait_to_begin:
    atomic { !asleep[me] -> goto fault }
park:
#ifndef SLEEP_LATE
    atomic { if :: in_progress[page] -> asleep[me] = true :: else -> goto fault fi }
#else
    asleep[me] = true;
#endif
    atomic { !asleep[me] -> goto park }
gone:
    skip
}

#define BEFORE 1
#define AFTER 2

/* The owner puts other pages in the place of the old ones. */
inline move() {
    d_step {
        page = first;
        do
        :: page > last -> break
        :: else ->
            current[page]++;
            mine[page] = current[page];
            page++
        od;
        page = 0
    }
}

active [2] proctype Owner() {
    byte page, first, last, moves;
    byte mine[PAGES];
    bool noted = true;

    atomic {
        /* One takes both pages or the first, the other both or the second: every way to overlap. */
        if
        :: last = 1
        :: _pid == VCPUS -> last = 0
        :: _pid != VCPUS -> first = 1; last = 1
        fi;
        if :: moves = BEFORE :: moves = AFTER :: true fi
    }

    d_step {
#ifdef NOT_WIDENED
        noted = !in_progress[0] && !in_progress[1];
#endif
        for (page : first .. last) { in_progress[page] = in_progress[page] + noted }
#ifdef BUMP_FIRST
        sequence++;
#endif
        page = 0
    }
    if :: moves == BEFORE -> move() :: else fi;
    page = first;
    do
    :: page > last -> break
    :: else ->
        p2m[page] = NONE;
#ifndef NO_FLUSH
        d_step { tlb[0].page[page] = NONE; tlb[1].page[page] = NONE }
#endif
        page++
    od;
    if :: moves == AFTER -> move() :: else fi;
    d_step {
#ifndef BUMP_FIRST
        sequence++;
#endif
        for (page : first .. last) { in_progress[page] = in_progress[page] - noted }
#ifdef RESET_RESOLVING
        for (page : first .. last) { resolving[page] = false }
#endif
#ifndef NO_NOTIFY
        notify_all();
#endif
        /* Acknowledged: the old pages are others' now. */
        for (page : first .. last) {
            if :: mine[page] > oldest[page] -> oldest[page] = mine[page] :: else fi
        }
        page = 0
    }
}
