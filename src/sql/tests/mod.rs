mod linear_time;
mod locks;
mod read;
mod session_state;
mod transaction_control;
