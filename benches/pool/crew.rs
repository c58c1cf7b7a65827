//! Two lasting threads, since pools keep slots for lasting threads.

use std::{
    sync::{
        LazyLock, Mutex, PoisonError,
        mpsc::{Sender, channel},
    },
    thread,
};

type Job = Box<dyn FnOnce() + Send>;

static THREADS: LazyLock<[Mutex<Sender<Job>>; 2]> = LazyLock::new(|| {
    [(); 2].map(|()| {
        let (jobs, todo) = channel::<Job>();
        thread::spawn(move || todo.iter().for_each(|job| job()));
        Mutex::new(jobs)
    })
});

/// Runs each job on a thread of its own, always the same, and returns the results.
pub(crate) fn together<T: Send + 'static>(
    first: impl FnOnce() -> T + Send + 'static,
    second: impl FnOnce() -> T + Send + 'static,
) -> [T; 2] {
    let jobs: [Box<dyn FnOnce() -> T + Send>; 2] = [Box::new(first), Box::new(second)];
    let mut answers = THREADS.iter().zip(jobs).map(|(jobs, job)| {
        let (answer, answered) = channel();
        let job = move || answer.send(job()).expect("the caller waits for the answer");
        let jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.send(Box::new(job)).expect("the threads do not end");
        answered
    });
    let answers = [(); 2].map(|()| answers.next().expect("there are two"));
    answers.map(|answer| answer.recv().expect("a job that panics has said why"))
}
